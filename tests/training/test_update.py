"""What CUDA would replay as one graph, run without it, against the ordinary update."""

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dtrl.config import ModelConfig, TrainingConfig
from dtrl.errors import InputError
from dtrl.training.optimization import check_precision, learning_rate, resident_windows
from dtrl.training.trainer import Trainer
from dtrl.training.update import WARM_UP, CapturedUpdate
from dtrl.windows import ResidentWindows

LENGTHS = (9, 2, 5, 7, 3, 6)
MODELS = [{}, {"trunk": "modern", "attention": "banded", "head": "gaussian"}, {"preset": "odt"}]


@pytest.fixture
def data(random_trajectories):
    return random_trajectories(LENGTHS)


def make_trainer(data, model=None, **options):
    training = {"updates": 20, "batch_size": 8, "schedule": "cosine", "device": "cpu", **options}
    shape = {"context_length": 4, "width": 16, "layers": 2, "dropout": 0.0}
    trainer = Trainer(data, ModelConfig(**{**shape, **(model or {})}), TrainingConfig(**training), None, resume=False)
    trainer.model.train()
    return trainer


def without_a_graph(trainer):
    """The trainer, with the function that a graph would hold in place of its ordinary update."""
    resident = ResidentWindows(trainer.windows, trainer.device)
    trainer.captured = CapturedUpdate(trainer.step, resident, trainer.config.batch_size, capture=False)
    return trainer


def weights(trainer):
    return [parameter.detach().cpu().numpy().copy() for parameter in trainer.model.parameters()]


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_the_function_that_is_captured_makes_the_ordinary_update(data, model, pieces):
    ordinary = make_trainer(data, model, gradient_accumulation=pieces)
    captured = without_a_graph(make_trainer(data, model, gradient_accumulation=pieces))
    before = weights(ordinary)
    for update in range(1, 6):
        ordinary.update(update)
        captured.update(update)
    for one, other in zip(weights(ordinary), weights(captured), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-6)
    assert any((one != other).any() for one, other in zip(before, weights(ordinary), strict=True))
    for (_, one), (_, other) in zip(ordinary.meter.values(), captured.meter.values(), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:TensorFloat32")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize(
    ("model", "pieces", "compiled"),
    [*((model, pieces, False) for model in MODELS for pieces in (1, 2)), ({}, 2, True)],
)
def test_a_graph_makes_the_ordinary_update(data, cuda, model, pieces, compiled, precision):
    options = {"device": str(cuda), "gradient_accumulation": pieces, "precision": precision}
    ordinary = make_trainer(data, model, **options)
    captured = make_trainer(data, model, cuda_graph=True, compile=compiled, **options)
    for update in range(1, WARM_UP + 6):
        ordinary.update(update)
        captured.update(update)
    assert captured.captured.graph is not None
    exact = precision == "fp32"
    for one, other in zip(weights(ordinary), weights(captured), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 if exact else 1e-3)
    for (_, one), (_, other) in zip(ordinary.meter.values(), captured.meter.values(), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4 if exact else 0.05, atol=1e-5 if exact else 1e-2)


@pytest.mark.parametrize("model", [{}, {"trunk": "modern", "kv_heads": 1}, {"attention": "banded"}])
def test_the_gpu_trains_as_the_processor(data, cuda, model):
    trainers = [make_trainer(data, {"heads": 4, **model}, device=device) for device in ("cpu", str(cuda))]
    for trainer in trainers:
        for update in range(1, 6):
            trainer.update(update)
    for one, other in zip(*map(weights, trainers), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:TensorFloat32")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_graph_draws_dropout_by_the_update_alone(data, cuda, compiled):
    options = {"device": str(cuda), "cuda_graph": True, "compile": compiled}
    trainers = [make_trainer(data, {"dropout": 0.5}, **options) for _ in range(2)]
    losses = []
    for trainer in trainers:
        for update in range(1, WARM_UP + 4):
            trainer.update(update)
            torch.rand(3, device=cuda)
        losses.append([measures[0] for _, measures in trainer.meter.values()])
    np.testing.assert_array_equal(losses[0], losses[1])
    captured, starts = trainers[0].captured, trainers[0].windows.draw(1)
    drawn = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        drawn.append(float(captured(starts, 0.0)[0]))
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize(
    "action_space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)]
)
def test_the_function_that_is_captured_waits_for_nothing(random_trajectories, action_space, nothing_read_back):
    data = random_trajectories(LENGTHS, None, action_space)
    trainer = without_a_graph(make_trainer(data, {"dropout": 0.1}))
    trainer.update(1)  # the first one makes AdamW's moments
    with nothing_read_back():
        trainer.captured.whole()
        with pytest.raises(AssertionError, match="waits for the device"):
            trainer.captured.failed.item()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "precision"),
    [({}, "bf16"), ({"trunk": "modern", "attention": "banded"}, "fp32"), ({"preset": "dt_discrete"}, "fp32")],
)
def test_the_loss_compiles_as_one_graph(data, model, precision):
    """A break would cost a compiled update most of what it gains."""
    trainer = make_trainer(data, {"dropout": 0.1, **model})
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = torch.compile(trainer.model.loss, backend="eager", fullgraph=True)
        assert torch.isfinite(loss(trainer.batch(1)).total)
    torch.compiler.reset()


def test_the_bound_of_an_entropy_waits_for_nothing(data, nothing_read_back):
    trainer = without_a_graph(make_trainer(data, {"preset": "odt", "dropout": 0.1}))
    trainer.update(1)
    before = weights(trainer)
    with nothing_read_back():
        trainer.captured.whole()
    assert any(not np.array_equal(one, other) for one, other in zip(before, weights(trainer), strict=True))


def test_dropout_of_the_function_that_is_captured_depends_on_the_update_alone(data):
    trainers = [without_a_graph(make_trainer(data, {"dropout": 0.5})) for _ in range(2)]
    torch.rand(3)
    for trainer in trainers:
        trainer.update(1)
    for one, other in zip(*map(weights, trainers), strict=True):
        np.testing.assert_array_equal(one, other)
    before = [measures[0] for _, measures in trainers[0].meter.values()]
    trainers[1].update(2)
    assert next(measures[0] for _, measures in trainers[1].meter.values()) == before[0]
    whole = make_trainer(data)
    whole.update(1)
    assert whole.meter.values()[0][1][0] != before[0]


def test_weights_stay_as_they_were_before_a_loss_that_nobody_has_read_yet(data):
    trainer = without_a_graph(make_trainer(data))
    trainer.update(1)
    before = weights(trainer)
    head = trainer.model.heads["action"].point.weight
    hook = head.register_hook(lambda gradient: gradient * torch.inf)
    trainer.update(2)
    hook.remove()
    trainer.update(3)
    for one, other in zip(before, weights(trainer), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match=r"the gradient of update 2 is (nan|inf)"):
        trainer.check_unread()


def test_the_rate_follows_the_schedule(data):
    trainer = without_a_graph(make_trainer(data))
    for update in (1, 11, 20):
        trainer.update(update)
        assert float(trainer.captured.rate) == pytest.approx(learning_rate(update, trainer.config))
        assert trainer.optimizer.param_groups[0]["lr"] is trainer.captured.rate


def test_data_on_the_device_give_the_same_weights(data):
    trainers = [make_trainer(data, data_on_device=where) for where in ("never", "always")]
    for trainer in trainers:
        for update in (1, 2):
            trainer.update(update)
    for one, other in zip(*map(weights, trainers), strict=True):
        np.testing.assert_array_equal(one, other)


def test_data_stay_on_the_host_where_the_device_is_the_host(data):
    trainer = make_trainer(data)
    assert resident_windows(trainer.windows, trainer.config, torch.device("cpu")) is None


@pytest.mark.parametrize(("free", "fits"), [(2.5, True), (1.5, False)])
def test_data_lie_on_a_gpu_where_they_take_half_of_its_free_memory(data, monkeypatch, free, fits):
    trainer = make_trainer(data)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * trainer.windows.nbytes), 2**40))
    made = []
    monkeypatch.setattr("dtrl.training.optimization.ResidentWindows", lambda windows, device: made.append(device))
    gpu = torch.device("cuda:0")
    resident_windows(trainer.windows, trainer.config, gpu)
    assert made == [gpu] * fits
    always = dataclasses.replace(trainer.config, data_on_device="always")
    if not fits:
        with pytest.raises(InputError, match=r"more than half of the .* MiB that are free on cuda:0"):
            resident_windows(trainer.windows, always, gpu)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "cuda_graph needs a CUDA device and this run is on cpu"),
        ({"data_on_device": "never"}, "cuda_graph does not go with data_on_device never"),
        ({"cuda_graph": False, "precision": "tf32"}, "precision tf32 needs an NVIDIA GPU .* this run is on cpu"),
    ],
)
def test_what_the_device_cannot_do_is_refused(data, options, says):
    with pytest.raises(InputError, match=says):
        make_trainer(data, **{"cuda_graph": True, **options})


@pytest.mark.parametrize(
    ("precision", "products"), [("tf32", "high"), ("fp32", "highest"), ("bf16", "highest"), ("fp32", "medium")]
)
def test_the_rounding_of_products_is_of_the_update_alone(data, monkeypatch, precision, products):
    """And is what torch was set to where the precision is not TF32."""
    trainer, seen = make_trainer(data), []
    trainer.step.config = dataclasses.replace(trainer.config, precision=precision)
    monkeypatch.setattr(trainer.step, "loss", lambda *_: seen.append(torch.get_float32_matmul_precision()) or 1 / 0)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(products if precision != "tf32" else "highest")
    try:
        with pytest.raises(ZeroDivisionError):
            trainer.step.gradients(trainer.windows.batch(1))
        assert seen == [products]
        assert torch.get_float32_matmul_precision() == ("highest" if precision == "tf32" else products)
    finally:
        torch.set_float32_matmul_precision(before)


def test_tf32_is_fp32_but_for_rounding(data, cuda):
    trainers = [make_trainer(data, device=str(cuda), precision=precision) for precision in ("fp32", "tf32")]
    exact, rounded = [trainer.step.gradients(trainer.windows.batch(1)).cpu() for trainer in trainers]
    np.testing.assert_allclose(rounded, exact, rtol=2e-3)
    assert not torch.equal(rounded, exact), "TF32 was not used"


@pytest.mark.parametrize(("half", "warns"), [(0.5, True), (2.0, False)])
def test_bf16_that_is_slower_than_fp32_is_said_to_be(monkeypatch, recwarn, half, warns):
    rates = {torch.bfloat16: half, torch.float32: 1.0}
    monkeypatch.setattr("dtrl.training.optimization.matmul_rate", lambda device, dtype: rates[dtype])
    check_precision(TrainingConfig(precision="bf16"), torch.device("cpu"))
    messages = [str(warning.message) for warning in recwarn]
    assert len(messages) == warns
    assert all("bf16 matrices 2 times more slowly" in message for message in messages)


def test_bf16_gives_the_loss_of_fp32_and_distributions_in_fp32(data):
    measures = []
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(data, precision=precision)
        measures.append(trainer.step.gradients(trainer.windows.batch(1)))
    np.testing.assert_allclose(measures[1], measures[0], rtol=0.02)
    assert not torch.equal(measures[1], measures[0]), "bf16 was not used"
    with torch.autocast("cpu", torch.bfloat16):
        distribution = trainer.model(trainer.windows.batch(1))["action"]
    assert distribution.mode.dtype == distribution.log_prob(torch.zeros(2)).dtype == torch.float32
