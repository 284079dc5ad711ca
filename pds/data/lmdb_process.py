"""Reads an LMDB for another process. Damaged pages crash or hang the process that reads them.

Run as `python lmdb_process.py FOLDER`; it needs the lmdb package alone. Each answer on standard output is a length of 8 bytes,
little-endian, and as many bytes. The first answer is the database's state as JSON. Each line of standard input then gets an
answer: "keys" the keys, a key in hexadecimal its value. A length of -1 says that the rest is the text of an error.
"""

from __future__ import annotations

import json
import struct
import sys


def main(folder: str) -> None:
    import lmdb

    answers = sys.stdout.buffer

    def answer(content: bytes, error: bool = False) -> None:
        answers.write(struct.pack("<q", -1) if error else b"")
        answers.write(struct.pack("<q", len(content)) + content)
        answers.flush()

    try:
        environment = lmdb.open(folder, readonly=True, lock=False, readahead=False)
        with environment.begin() as transaction:
            state, info = environment.stat(), environment.info()
            facts = {"entries": state["entries"], "psize": state["psize"]}
            answer(json.dumps(facts | {"last_pgno": info["last_pgno"], "last_txnid": info["last_txnid"]}).encode())
            for line in sys.stdin:
                try:
                    if line == "keys\n":
                        cursor = transaction.cursor()
                        listed = iter(cursor.iternext(keys=True, values=False))
                        # A damaged tree may lead in a circle.
                        keys = [key for key, _ in zip(listed, range(state["entries"] + 1), strict=False)]
                        answer(b"".join(struct.pack("<H", len(key)) + key for key in keys))
                    else:
                        value = transaction.get(bytes.fromhex(line))
                        answer(b"no such key", error=True) if value is None else answer(value)
                except (lmdb.Error, MemoryError) as error:
                    answer(type(error).__name__.encode(), error=True)
    except (lmdb.Error, MemoryError, OSError) as error:
        answer(type(error).__name__.encode(), error=True)


if __name__ == "__main__":
    main(sys.argv[1])
