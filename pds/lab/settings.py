"""The options of the programs themselves; the options of an object stand at its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf

from pds.conditioning import Labels
from pds.errors import OptionError
from pds.options import MOST, Length, Positive, Range, Seed, options, options_of

Images = Annotated[int, Range(1, 100_000_000)]
Batch = Annotated[int, Range(1, 65_536)]
Threads = Annotated[int, Range(1, 1024)]
Iterations = Annotated[Sequence[int], Range(2, MOST), Length(1, 100)]


@options
class Machine:
    """The device of a program, and its output folder.

    Attributes:
        device: auto (a GPU if there is one), cpu, cuda, cuda:N.
        threads: CPU threads of torch; null leaves its default (beside other busy processes, OMP_WAIT_POLICY=passive helps).
        outputs: where run folders go.
    """

    device: str = "auto"
    threads: Threads | None = None
    outputs: str = "outputs"


@options
class Precision(Machine):
    """How a network computes.

    Attributes:
        bf16: bfloat16 autocast of the network; the images change by its rounding.
        tf32: float32 on a GPU: true rounds to TensorFloat-32 in convolutions and products, false nowhere, null by the default
            of torch (convolutions).
        compile: torch.compile the network: seconds to minutes at the start, then faster; images change by rounding alone.
    """

    bf16: bool = False
    tf32: bool | None = None
    compile: bool = False


@options
class Run(Precision):
    """Sampling: python experiments/run.py [group=choice ...] [key=value ...]; -m sweeps over comma-separated values.
    experiment=NAME stands for a named setting (--list experiment), recommendation=PATH budget=N for those that tune.py found.

    Attributes:
        group: name of a group of runs that are compared, outputs/<group>/<run>, with one report; "runs", or the sweep's name.
        images: images to sample and to measure the distance on.
        seed: seed of all noise: image i depends on (seed, i) alone.
        shard_size: images a file of samples/: the unit of resume and of work shared by processes.
        labels: classes of the images: image i has entry i mod n of n. uniform takes all classes in turn. null is for images
            without a class.
        batch_size: images sampled at once; a larger batch covers several shards. It changes speed and memory, not the images.
            With corrector.norms=batch it changes the images, and is at most shard_size: a restart must have the same batches.
    """

    group: str = "runs"
    images: Images = 256
    seed: Seed = 0
    shard_size: Annotated[int, Range(1, 1_000_000)] = 64
    batch_size: Batch = 64
    labels: Labels | None = None


@options
class Train(Machine):
    """Training: python experiments/train.py [key=value ...]. Killed and started again, it goes on from its last checkpoint.

    Attributes:
        name: name of the run folder and the weights file: outputs/train/<name>/<name>.safetensors.
        seed: seed of the initial weights.
    """

    name: str = "mnist_ncsn"
    seed: Seed = 0


@options
class Benchmark(Precision):
    """Cost of PDS here: python experiments/tools/benchmark.py [key=value ...]. It needs neither a checkpoint nor data.

    Attributes:
        batch_size: images sampled at once.
        repeats: repeats of each timing, after the warm-up.
    """

    batch_size: Batch = 1
    repeats: Annotated[int, Range(1, 10_000)] = 5


@options
class Gaussian:
    """A sampler on a Gaussian with the data set's mean and power spectrum, exactly: python experiments/tools/gaussian.py.

    It needs neither a checkpoint nor a GPU. The exception is model=ddpm, whose folder has its noise levels. At 28² it takes
    seconds to a minute: it computes T + 2 images in float64 at once.

    Attributes:
        iterations: T, a line each.
        vary: the key whose value differs between columns.
        over: its values.
    """

    iterations: Iterations = (25, 50, 100, 200)
    vary: str = "filter.alpha"
    over: Annotated[Sequence[float], Range(-1e9, 1e9), Length(1, 1000)] = (1.5, 2, 2.5, 3, 4, 5, 7, 10, 15, 20, 40)


@options
class ExcessNoise(Machine):
    """The excess noise that a network sees, and that a sampler leaves: python experiments/tools/excess_noise.py.

    Attributes:
        iterations: T, a line each.
        images: number of real images for the response, and of sampled images for their noise.
        seed: seed of the sampled images.
    """

    iterations: Iterations = (25, 50, 100)
    images: Images = 32
    seed: Seed = 10


@options
class Reproduce:
    """The papers' tables and figures: python experiments/reproduce.py table=... [small=true] [key=value ...].
    Other keys are overrides of every run, such as device=cuda batch_size=128 tracker=none.

    Attributes:
        small: the table's small form, on what this repository ships, in minutes on 2 CPU cores.
        seeds: one block of images for each; several give mean and standard deviation.
        images: images of every cell; null: as printed, or as in the table's small form.
        outputs: where run folders go.
        checkpoints: folder of the official checkpoints. Each has its name in `origins` with .pth or .safetensors, or is a
            diffusers folder of that name; links will do.
        origins: address of each checkpoint.
    """

    small: bool = False
    seeds: Annotated[Sequence[int], Range(0, 2**64 - 1), Length(1, 1000)] = (0,)
    images: Images | None = None
    outputs: str = "outputs"
    checkpoints: str = "checkpoints"
    origins: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise OptionError("seeds", "must be different: equal ones are one run")


@options
class Tune:
    """The best sampler, filter and steps for a network: python experiments/tune.py model=... budgets=[10,20] [key=value ...].

    Other keys are overrides of every run. Those of sampler, filter, solenoid and remedy make the default; the winner is
    compared with it. The same command continues a search that was killed, and several processes with one command share it.

    Attributes:
        budgets: evaluations an image, an answer for each.
        trials: settings tried for each budget.
        images: images of a trial, a multiple of 4. A clearly poor trial ends after a quarter of them.
        final: images of the leading trials and of the confirmation, a multiple of `images`.
        leaders: leading trials of each budget.
        seed: seed of the noise of all trials and of the search.
        seeds: seeds of the noise on which the winner and the default are confirmed.
        search: tpe, a tree-structured Parzen estimator; or random.
        max_minutes: limit of this command in minutes. No trial begins after half of it, and nothing after all of it.
        max_evaluations: limit of network evaluations by all processes since the search began, used in the same way.
        storage: URL of a database for the trials; null is a file in the group's folder.
    """

    budgets: Annotated[Sequence[int], Range(1, 100_000), Length(1, 100)]
    trials: Annotated[int, Range(1, 100_000)] = 40
    images: Annotated[int, Range(8, 100_000_000)] = 256
    final: Images = 2048
    leaders: Annotated[int, Range(1, 1000)] = 3
    seed: Seed = 10
    seeds: Annotated[Sequence[int], Range(0, 2**64 - 1), Length(2, 1000)] = (0, 1, 2)
    search: Literal["tpe", "random"] = "tpe"
    max_minutes: Positive | None = None
    max_evaluations: Annotated[int, Range(1, 10**15)] | None = None
    storage: str | None = None

    def __post_init__(self) -> None:
        if self.images % 4 or self.final % self.images:
            problem = f"must be a multiple of 4 that divides final, got {self.images} and {self.final}"
            raise OptionError("images", problem, {"images": 256, "final": 2048})
        if self.seed in self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise OptionError("seeds", f"must be different, and none of them the seed of the trials, {self.seed}")


Kind = TypeVar("Kind")


def settings(kind: type[Kind], cfg: Mapping[str, Any] | DictConfig) -> Kind:
    """The options of a program in its configuration, checked; an `OptionError` names the first invalid one."""
    target: Any = kind
    given = {name: cfg[name] for name in options_of(target)}
    return kind(**{name: OmegaConf.to_object(value) if OmegaConf.is_config(value) else value for name, value in given.items()})
