"""Classes and guidance: their law, their cost, the label of each image, and refusals."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_line import command, side_by_side
from torch.distributions import Categorical, MixtureSameFamily, Normal

import pds
from pds.conditioning import ClassifierFree, ClassifierGuidance, Conditional, Guided, labels_of
from pds.errors import OptionError, PDSError
from pds.generation import ImageSampler
from pds.models.ncsnpp import ncsnpp
from pds.models.safetensors_files import save_weights
from pds.models.scores import for_sampling
from pds.preconditioning.preconditioner import Identity
from pds.score import CountedScore

SHAPE = (1, 1, 1)
VE = pds.VarianceExploding(0.01, 20.0, 100)
MEANS, STDS = torch.tensor([-0.5, 0.7, 0.2]).double(), torch.tensor([0.3, 0.2, 0.6]).double()


def law(label, sigma):
    """The law of the images of a class, or of all (-1), with noise."""
    if label < 0:
        return MixtureSameFamily(Categorical(torch.ones(3).double()), Normal(MEANS, (STDS**2 + sigma**2) ** 0.5))
    return Normal(MEANS[label], (STDS[label] ** 2 + sigma**2) ** 0.5)


def gradient(label, x, sigma):
    """d log p / dx, by differentiating the density."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(law(label, sigma).log_prob(x).sum(), x)[0]


def network(x, sigma, labels):
    """The exact score of each image's class, or of all."""
    variance = STDS**2 + sigma.double()[:, None] ** 2
    away = MEANS - x.double().flatten(1)
    shares = (-(away**2) / (2 * variance) - variance.log() / 2).softmax(1)
    shares = torch.where(labels[:, None] < 0, shares, (labels[:, None] == torch.arange(3)).double())
    return (shares * away / variance).sum(1).reshape(x.shape).to(x.dtype)


def model(score=network, **about):
    given = {"predicts": "score", "process": VE, "shape": SHAPE, "data_range": (0, 1), "classes": 3, "no_class": -1}
    return pds.wrap(score, **given | about)


def images(sampler, indices, labels, guidance=ClassifierFree()):
    made = model()
    known = labels_of(made, labels, guidance)
    sample = ImageSampler(made.score, sampler, VE, Identity(), SHAPE, 0, torch.device("cpu"), labels=known, guidance=guidance)
    return sample(indices)


def quantiles(q, w, label, steps=150):
    """Quantiles of the images: the guided probability flow is monotone in one dimension, and maps the quantiles of the
    start."""
    x, u = 20.0 * Normal(0, 1).icdf(q), math.log(20.0)
    h = (math.log(0.01) - u) / steps

    def rate(x, u):
        unconditional = gradient(-1, x, math.exp(u))
        return -math.exp(2 * u) * (unconditional + w * (gradient(label, x, math.exp(u)) - unconditional))

    for _ in range(steps):
        k1 = rate(x, u)
        k2 = rate(x + h / 2 * k1, u + h / 2)
        k3 = rate(x + h / 2 * k2, u + h / 2)
        x, u = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + rate(x + h * k3, u + h)), u + h
    return x


def test_the_law_of_classifier_free_guidance_is_that_of_its_flow_and_not_the_product():
    w, q = 3.0, torch.linspace(0.02, 0.98, 25).double()
    x, _ = images(pds.DPMSolver(80, eta=0.0), range(9000), "uniform", ClassifierFree(w))
    grid = torch.linspace(-6, 6, 20_001).double()
    # Dvoretzky-Kiefer-Wolfowitz: 1e-4 of all seeds are farther off.
    band = math.sqrt(math.log(2 / 1e-4) / (2 * 3000))
    for label in range(3):
        expected = quantiles(q, w, label)
        shares = (x[label::3].flatten().double()[:, None] <= expected).double().mean(0)
        assert (shares - q).abs().max() < band
        product = (w * law(label, 0.01).log_prob(grid) + (1 - w) * law(-1, 0.01).log_prob(grid)).softmax(0).cumsum(0)
        assert np.abs(np.interp(expected, grid, product) - q.numpy()).max() > 2 * band


SAMPLERS = {
    "predictor-corrector": pds.PredictorCorrector(6, pds.ReverseDiffusion(), pds.Langevin(0.2)),
    "preconditioned SDE": pds.PreconditionedSDE(6),
    "adaptive": pds.AdaptiveSDE(2000, 0.1),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("guidance", [ClassifierFree(), ClassifierFree(3.0, (0.1, 5.0))], ids=["class", "guided"])
def test_the_class_of_an_image_depends_on_its_index_alone(sampler, guidance):
    labels = [2, 0, 0, 1, 2]
    whole, _ = images(sampler, range(7), labels, guidance)
    part, _ = images(sampler, [6, 3], labels, guidance)
    torch.testing.assert_close(part, whole[[6, 3]])
    alone, _ = images(sampler, [6], [2, 0], guidance)
    torch.testing.assert_close(alone, images(sampler, [6], [2], guidance)[0])
    assert (alone - part[:1]).abs().min() > 1e-3  # of class 0


@pytest.mark.parametrize(
    ("guidance", "evaluations"),
    [
        (ClassifierFree(1.0), 10),
        (ClassifierFree(0.0), 10),
        (ClassifierFree(3.0), 20),
        (ClassifierFree(3.0, (0.1, 5.0)), None),
        (ClassifierFree(3.0, (21.0, math.inf)), 10),
        (ClassifierGuidance(lambda x, sigma: x.flatten(1).expand(-1, 3), 3), 10),
    ],
    ids=["the class", "no class", "both", "an interval", "an interval above all levels", "a classifier"],
)
def test_evaluations_of_both_halves_are_counted(guidance, evaluations):
    sampler = pds.EDM(10, S_churn=0.0, order=1)
    within = sum(0.1 < level.sigma <= 5.0 for level in sampler.levels(VE)) if evaluations is None else 0
    assert evaluations or 2 < within < 8
    assert images(sampler, range(4), "uniform", guidance)[1] == (evaluations or 10 + within)


def test_guidance_is_the_combination_within_its_interval_only():
    x, sigma = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 0.1, 3.0, 5.0])
    labels = torch.tensor([0, 1, 2, 1])
    one, none = network(x, sigma, labels), network(x, sigma, torch.full((4,), -1))
    guided = Guided(Conditional(network, labels), lambda x, sigma: none, 3.0, (0.1, 3.0))
    expected = one.clone()
    expected[[0, 2]] = none[[0, 2]] + 3 * (one - none)[[0, 2]]  # the interval is (low, high]
    torch.testing.assert_close(guided(x, sigma), expected)


def test_classifier_guidance_with_the_exact_classifier_is_the_score_of_the_class():
    def classifier(x, sigma):
        of = x.flatten().double()
        return torch.stack([law(label, sigma.double()).log_prob(of) for label in range(3)], dim=1)

    bare = model(lambda x, sigma: network(x, sigma, torch.full((len(x),), -1)), classes=0, no_class=None)
    known = labels_of(bare, "uniform", ClassifierGuidance(classifier, 3))
    x, sigma = torch.linspace(-1, 1, 6).reshape(6, *SHAPE), torch.full((6,), 0.4)
    s = ClassifierGuidance(classifier, 3)(bare.score, known.repeat(2), 0)(x, sigma)
    torch.testing.assert_close(s, network(x, sigma, known.repeat(2)))
    outside = ClassifierGuidance(classifier, 3, 1.0, (0.4, 9.0))(bare.score, known.repeat(2), 0)(x, sigma)
    assert torch.equal(outside, bare.score(x, sigma))


def test_a_classifier_guides_in_inference_mode_as_outside():
    def classifier(x, sigma):
        return torch.cat([x.flatten(1) * sigma[:, None], torch.zeros(len(x), 1)], 1)

    def sampled():
        made = model(lambda x, sigma: -x / (1 + sigma[:, None, None, None] ** 2), classes=0, no_class=None)
        guided = {"labels": [0, 1], "guidance": ClassifierGuidance(classifier, 2, 4.0)}
        return pds.sample(made, pds.EDM(5), images=4, **guided).images

    with torch.inference_mode():
        inside = sampled()
    assert torch.equal(inside, sampled())


def test_a_classifier_is_put_into_evaluation_mode():
    inner = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5))
    guidance = ClassifierGuidance(lambda x, sigma: inner(x), 3)
    guidance.check(model())
    assert not inner.training and inner[2].num_batches_tracked == 0


def test_a_network_with_classes_sees_them_under_guidance_by_a_classifier():
    seen = []

    def watched(x, sigma, labels):
        seen.append(labels.tolist())
        return network(x, sigma, labels)

    guidance = ClassifierGuidance(lambda x, sigma: x.flatten(1).expand(-1, 3), 3)
    for no_class in (-1, None):
        made = model(watched, no_class=no_class)
        seen.clear()
        pds.sample(made, pds.EDM(3, order=1), images=2, labels=np.array([1, 2]), guidance=guidance)
        assert seen and all(labels == [1, 2] for labels in seen)


def test_a_velocity_is_guided_by_a_classifier_and_has_no_remedy():
    cld = pds.load("asset:mnist_cld")
    guidance = ClassifierGuidance(lambda x, sigma: x.flatten(1)[:, -10:], 10)
    plain, guided = (pds.sample(cld, pds.SSCS(2), images=2, **given) for given in ({}, {"labels": [3], "guidance": guidance}))
    assert not torch.equal(plain.images, guided.images)
    for remedy in (pds.epsilon_scaling, pds.time_shift, pds.band_correction, pds.level_shift, pds.seen_noise):
        with pytest.raises(PDSError, match=r"is for scores of images, and .* gives the score of a velocity"):
            remedy(cld)


def test_remedies_bfloat16_and_the_counter_pass_labels_on():
    made, labels = model(), torch.tensor([0, 2])
    x, sigma = torch.randn(2, 1, 4, 4), torch.tensor([0.5, 0.5])
    statistics = pds.statistics(torch.rand(4, 1, 4, 4))
    wide = replace(made, score=Shown(), shape=(1, 4, 4), statistics=statistics)
    for remedy in (pds.epsilon_scaling, pds.time_shift, pds.band_correction, pds.level_shift, pds.seen_noise):
        Shown.seen = None
        score = CountedScore(for_sampling(remedy(wide).score, torch.device("cpu"), bf16=True))
        Conditional(score, labels)(x, sigma)
        assert torch.equal(Shown.seen, labels), remedy


class Shown(pds.models.scores.NetworkScore):
    """Remembers its labels."""

    seen = None

    def forward(self, x, sigma, *labels):
        if labels:
            Shown.seen = labels[0]
        return -x / sigma[:, None, None, None] ** 2


def test_a_network_of_ones_own_is_shown_its_own_label_for_none():
    shown = []

    def remembering(x, sigma, labels):
        shown.append(labels.tolist())
        return torch.zeros_like(x)

    made = model(remembering, classes=4, no_class=9)
    x, sigma = torch.zeros(2, *SHAPE), torch.ones(2)
    made.score(x, sigma)
    made.score(x, sigma, torch.tensor([3, -1]))
    assert shown == [[3, 9], [9, 9], [3, 9]]
    with pytest.raises(OptionError, match="no_class is missing, and an image has no class"):
        model(no_class=None).score(x, sigma)


REFUSED = {
    "out of range": (model(), [0, 3], None, r"labels must be from 0 to 2 for .*, got 3"),
    "negative": (model(), [-1], None, "labels must be uniform, a list of classes as in"),
    "a number": (model(), 3, None, r"labels must be uniform, a list of classes as in \[3\], or a file of whole numbers, got 3"),
    "no label": (model(), [], None, "labels must be uniform, a list of classes as in"),
    "no classes": (model(lambda x, s: x, classes=0, no_class=None), [0], None, "labels must be left out: .* takes no classes"),
    "uniform of none": (model(lambda x, s: x, classes=0, no_class=None), "uniform", None, "labels must be left out"),
    "no file": (model(), "/nowhere/labels.txt", None, "labels names /nowhere/labels.txt, which does not exist: give uniform"),
    "unlabelled": (model(no_class=None), None, None, "labels is missing, and .* has no unconditional score"),
    "guidance of no classes": (
        model(lambda x, s: x, classes=0, no_class=None),
        None,
        ClassifierFree(3.0),
        "guidance must be left out: .* takes no classes",
    ),
    "guidance alone": (model(), None, ClassifierFree(3.0), "labels is missing, and guidance is towards a class"),
    "no branch": (
        model(no_class=None),
        [0],
        ClassifierFree(3.0),
        "scale must be 1 for .*, got 3: it has no unconditional score. A network of your own",
    ),
    "another classifier": (model(), [0], ClassifierGuidance(network, 5), "classes must be 3, the classes of .*, got 5"),
}


@pytest.mark.parametrize(("made", "labels", "guidance", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_conditioned_is_refused_before_any_evaluation(made, labels, guidance, message):
    made.score.forward = None
    with pytest.raises(PDSError, match=message):
        pds.sample(made, pds.EDM(4), labels=labels, guidance=guidance)


@pytest.mark.parametrize(
    "classifier",
    [
        lambda x, sigma: x.flatten(1)[:, :1].expand(-1, 2),
        lambda x, sigma: x.flatten(1)[:, :1].expand(-1, 9),
        lambda x, sigma: x.flatten(1)[:, 0],
        lambda x, sigma: torch.zeros(len(x), 3),
        lambda x, sigma: x.detach().numpy(),
        lambda x: x,
    ],
    ids=["few", "many", "one value", "no gradient", "an array", "one argument"],
)
def test_a_classifier_that_cannot_guide_is_refused_before_any_evaluation(classifier):
    bare = model(lambda x, sigma: x, classes=0, no_class=None)
    bare.score.forward = None
    with pytest.raises(
        OptionError, match=r"classifier must give logits of shape \(2, 3\) that depend on x.*(: \w+Error, |, got )"
    ):
        pds.sample(bare, pds.EDM(4), labels=[2], guidance=ClassifierGuidance(classifier, 3))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, "3", None, True])
def test_a_scale_that_is_no_finite_number_is_refused(scale):
    for make in (lambda: ClassifierFree(scale), lambda: ClassifierGuidance(network, 3, scale)):
        with pytest.raises(OptionError, match="scale must be a number from -1000 to 1000"):
            make()
    with pytest.raises(OptionError, match="interval must be a list of 2 numbers"):
        ClassifierFree(1.0, (1.0,))


@pytest.mark.parametrize("interval", [(3.0, 1.0), (1.0, 1.0), (math.inf, math.inf)])
def test_an_interval_that_guides_nowhere_is_refused(interval):
    makers = [
        lambda: ClassifierFree(3.0, interval),
        lambda: ClassifierGuidance(network, 3, 3.0, interval),
        lambda: Guided(network, network, 3.0, interval),
    ]
    for make in makers:
        with pytest.raises(OptionError, match="interval must have the lower noise level first, got"):
            make()


@pytest.mark.parametrize("content", [b"0 1 x", b"\xff\x00", b"1.5", b"99999999999999999999"])
def test_a_file_of_other_things_is_refused(tmp_path, content):
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(PDSError, match=r"is not a file of labels|labels must be from 0 to 2"):
        labels_of(model(), tmp_path / "labels")


def trained(path, dropout):
    """A network of our own with three classes, as training writes it."""
    torch.manual_seed(0)
    options = {
        "shape": [1, 28, 28],
        "width": 4,
        "multipliers": [1, 1],
        "blocks": 1,
        "attention": [],
        "fir": False,
        "input": "none",
    }
    network = ncsnpp(**options | {"shape": (1, 28, 28)}, classes=3).score.network
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    about = {"model": {"kind": "ncsnpp", **options, "classes": 3}, "trainer": {"label_dropout": dropout}}
    save_weights(network.state_dict(), path, {"config": json.dumps(about)})
    return [f"model.{key}={json.dumps(value)}".replace(" ", "") for key, value in options.items()] + [
        f"model.checkpoint={path}"
    ]


def test_the_command_line_samples_classes_in_shards_and_resumes(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("2 0\n1\n")
    rest = [
        "model=ncsnpp",
        "model.classes=3",
        *trained(tmp_path / "w.safetensors", 0.1),
        "dataset=mnist",
        "metric=mnist_classifier",
    ]
    rest += ["tracker=none", "images=5", "shard_size=2", "sampler=edm", "sampler.iterations=2", f"outputs={tmp_path}/out"]
    given = ["guidance=classifier_free", "guidance.scale=2"]

    def run():
        done = command("run.py", *rest, f"labels={file}", "batch_size=3", *given)
        assert done.returncode == 0, done.stderr
        (folder,) = (tmp_path / "out").glob("*/*/samples")
        return folder

    folder = run()
    shards = sorted(folder.glob("*.npz"))
    whole = np.concatenate([np.load(shard)["images"] for shard in shards])
    result = json.loads((folder.parent / "result.json").read_text())
    assert result["nfe"] == 6  # of three evaluations
    assert len(result["accuracy_of_classes"]) == 10 and 0 <= result["metrics"]["accuracy_mnist_classifier_native_n5"] <= 1
    shards[1].unlink()
    (folder.parent / "result.json").unlink()
    assert run() == folder
    model = pds.load(tmp_path / "w.safetensors", device="cpu")
    assert (model.classes, model.unconditional) == (3, True)
    own = pds.sample(model, pds.EDM(2, S_churn=10), labels=[2, 0, 1], guidance=ClassifierFree(2), images=5, batch_size=3)
    again = np.concatenate([np.load(shard)["images"] for shard in sorted(folder.glob("*.npz"))])
    assert np.array_equal(again, whole) and np.array_equal(own.images.numpy(), whole)
    # In two processes each shard has the labels of its images' indices, from either process.
    two = [*rest[:-1], f"outputs={tmp_path}/two", f"labels={file}", "batch_size=2", *given]
    side_by_side(lambda: command("run.py", *two))
    shared = [np.load(shard)["images"] for shard in sorted((tmp_path / "two").glob("*/*/samples/*.npz"))]
    assert len(shared) == 3 and np.abs(np.concatenate(shared).astype(int) - whole).max() <= 1
    for more, message in (
        (["labels=[0]", *given[:1], "guidance.scale=inf"], "guidance.scale must be a number from -1000 to 1000, got inf"),
    ):
        assert message in command("run.py", *rest, *more).stderr
    for classes in (0, 4):
        said = command("run.py", *rest, f"model.classes={classes}").stderr
        assert f"model.classes is {classes}, but {tmp_path}/w.safetensors was trained with 3: set model.classes=3" in said
    trained(tmp_path / "w.safetensors", 0.0)
    assert "guidance.scale must be 1 for NCSN++" in command("run.py", *rest, "labels=[0]", *given).stderr
