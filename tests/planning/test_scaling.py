"""The cost model: numbers made by hand, laws of its terms, and a machine that follows it is predicted exactly."""

import re
from dataclasses import asdict, replace

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.cli import main
from sae_lens_crosscoder.planning import calibration
from sae_lens_crosscoder.planning.calibration import estimate_time
from sae_lens_crosscoder.planning.scaling import (
    ASSUMPTIONS,
    MACHINES,
    Hardware,
    figures_from,
    n_collectives,
    step_time,
    step_traffic,
)
from tests.planning.test_plan import config, planned

BATCHTOPK = slc.BatchTopKCrosscoderTrainingConfig
UNIT = Hardware(1, 1, 1, latency=1, fixed_seconds=1, efficiency=1, source="by hand")
SAE = BATCHTOPK(d_models=(2, 4), d_sae=16, k=3)
LAYOUTS = [(1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (2, 2), (8, 8)]
MILLION = BATCHTOPK(d_model=96, d_sae=2**20, k=100)


def test_one_process_by_hand():
    time = step_time(SAE, 8, UNIT)
    assert time.product == 2 * 8 * 6 * 16
    # 2 * 6 * 16 weights and 16 + 6 biases, 8 * 3 pairs and 8 tokens of 6 numbers, each of 4 bytes
    assert time.memory == 4 * (11 * (192 + 22) + 5 * 24 * 6 + 10 * 8 * 6)
    assert (time.fixed, time.link, time.latency) == (1, 0, 0)
    assert time.seconds == time.product + time.memory + 1


def test_two_by_two_by_hand():
    time = step_time(SAE, 8, UNIT, n_data=2, n_latents=2)
    assert time.product == 2 * 4 * 6 * 8
    assert time.memory == 4 * (11 * (192 + 22) / 2 + 5 * (4 * 3 / 2) * 6 + 10 * 4 * 6)
    # half of 3 times 4 tokens' 6 numbers; of 2 times half the gradients and 8-byte counts; 3/4 of 1.25 * 24 scores
    assert time.link == 3 * (4 * 6 * 4) / 2 + 2 * ((192 + 22) * 4 + 16 * 8) / 2 / 2 + 0.75 * 1.25 * 24 * 4
    assert time.latency == 16


def test_products_in_float32_take_as_long_as_the_hardware_takes_for_those():
    slower = replace(UNIT, flops_float32=0.25)
    l1 = slc.L1CrosscoderTrainingConfig(d_models=(2, 4), d_sae=16)
    in_float32 = [l1, replace(SAE, training_step="dense"), replace(SAE, screening="float32")]
    in_bfloat16 = [SAE, replace(SAE, screening="bfloat16"), replace(l1, dtype="bfloat16")]
    for sae in (*in_float32, *in_bfloat16):
        expected = (4 if sae in in_float32 else 1) * step_time(sae, 8, UNIT).product
        assert step_time(sae, 8, slower).product == expected
    assert MACHINES["h200_node"].flops_float32 < MACHINES["h200_node"].flops / 10


def test_hardware_that_is_twice_as_good_in_one_way_halves_one_part():
    whole = step_time(SAE, 8, UNIT, 2, 2)
    for name, parts in [
        ("flops", {"product"}),
        ("memory_bandwidth", {"memory"}),
        ("link_bandwidth", {"link"}),
        ("efficiency", {"product", "memory"}),
    ]:
        better = step_time(SAE, 8, replace(UNIT, **{name: 2}), 2, 2)
        halved = {part: seconds / (2 if part in parts else 1) for part, seconds in whole._asdict().items()}
        assert better._asdict() == halved
    assert step_time(SAE, 8, replace(UNIT, latency=0, fixed_seconds=0), 2, 2) == whole._replace(fixed=0, latency=0)


@pytest.mark.parametrize("sae", [SAE, slc.L1CrosscoderTrainingConfig(d_models=(2, 4), d_sae=16)])
def test_more_processes_compute_less_each_and_exchange_more_in_all(sae):
    alone = step_time(sae, 8, UNIT)
    for n_data, n_latents in LAYOUTS[1:]:
        time = step_time(sae, 8, UNIT, n_data, n_latents)
        assert time.product == alone.product / (n_data * n_latents)
        assert time.memory < alone.memory
        assert time.fixed == alone.fixed
    for few, many in [((2, 1), (4, 1)), ((4, 1), (8, 1)), ((1, 2), (1, 4)), ((1, 4), (1, 8))]:
        assert few[0] * few[1] * step_traffic(sae, 8, *few) < many[0] * many[1] * step_traffic(sae, 8, *many)
    assert step_traffic(sae, 8, 1, 1) == n_collectives(sae, 1, 1) == 0


def test_wider_longer_and_denser_steps_take_longer():
    least = step_time(SAE, 8, UNIT, 2, 2)
    changes = [{"d_models": (4, 4), "d_in": 8}, {"d_sae": 32}, {"k": 4}, {"dtype": "float64"}]
    for change in changes:
        assert step_time(replace(SAE, **change), 8, UNIT, 2, 2).seconds > least.seconds
    assert step_time(SAE, 16, UNIT, 2, 2).seconds > least.seconds


class TestMeasured:
    """Where the clock is replaced by a machine that is known."""

    MACHINE = Hardware(3e9, 2e9, 1, latency=0, fixed_seconds=0.01, efficiency=0.25, source="")

    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch):
        def seconds(sae, batch, cfg):
            # What is measured as the fixed part is exactly that.
            return self.MACHINE.fixed_seconds if batch == 8 else step_time(sae, batch, self.MACHINE).seconds

        monkeypatch.setattr(calibration, "_measured_step_seconds", seconds)
        monkeypatch.setattr(calibration, "_flops_per_second", lambda device, dtype: self.MACHINE.flops)
        monkeypatch.setattr(calibration, "_bytes_per_second", lambda device: self.MACHINE.memory_bandwidth)

    @pytest.mark.parametrize("d_sae", [256, 2**20])
    def test_a_machine_that_follows_the_model_is_found_and_predicted_at_any_size(self, d_sae):
        cfg = config(sae=BATCHTOPK(d_model=96, d_sae=d_sae, k=8))
        estimate = estimate_time(cfg, (None, None))
        found = estimate.hardware[""]
        assert found.efficiency == pytest.approx(0.25)
        assert found.fixed_seconds == 0.01
        assert estimate.step_seconds == pytest.approx(step_time(cfg.sae, 128, self.MACHINE).seconds)
        assert ("extrapolated by a cost model to 1048576" in estimate.how) == (d_sae == 2**20)

    def test_what_is_not_measured_is_said_to_be_assumed_or_given(self):
        plan = slc.plan(config(), processes=2)
        assert "assumed: link_bandwidth 1e+10, latency 0.0001" in str(plan)
        plan = slc.plan(config(), processes=2, hardware={"link_bandwidth": 5e9})
        assert "given: link_bandwidth 5e+09; assumed: latency 0.0001" in str(plan)
        assert plan.time.hardware[""].link_bandwidth == 5e9
        assert plan.time.hardware[""].efficiency == pytest.approx(0.25)

    def test_crosscoders_of_one_run_step_in_turn(self):
        saes = {"small": BATCHTOPK(d_model=96, d_sae=256, k=8), "large": BATCHTOPK(d_model=96, d_sae=512, k=8)}
        together = slc.plan(config(saes=saes), processes=4).layouts
        alone = [slc.plan(config(sae=sae), processes=4).layouts for sae in saes.values()]
        for layout, *parts in zip(together, *alone, strict=True):
            assert layout.time.seconds == pytest.approx(sum(part.time.seconds for part in parts))


def test_the_clock_stops_when_the_device_that_works_is_done(monkeypatch):
    waited_for = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited_for.append(device))
    calibration._seconds(lambda: None, "cuda:1")
    assert waited_for == ["cuda:1"]


class TestPlan:
    def test_64_devices_and_a_million_latents(self):
        cfg = config(sae=MILLION, train_batch_size_tokens=2048, training_tokens=2048 * 10, device="cuda")
        plan = planned(cfg, memory_gib=141, processes=64, hardware=figures_from("h200_nodes"))
        assert [layout.n_latents for layout in plan.layouts] == [1, 2, 4, 8, 16, 32, 64]
        expected = [step_time(MILLION, 2048, MACHINES["h200_nodes"], 64 // n, n) for n in (1, 2, 4, 8, 16, 32, 64)]
        assert [layout.time for layout in plan.layouts] == expected
        assert plan.fastest.time.seconds == min(time.seconds for time in expected)
        text = str(plan)
        n, verdict = re.search(r"^ +(\d+)  .*(the fastest that fits)$", text, flags=re.M).groups()
        assert (int(n), text.count(verdict)) == (plan.fastest.n_latents, 1)
        assert all(assumption in text for assumption in ASSUMPTIONS)
        assert "not measured: the vendor's published peaks" in text
        assert "assumed to reach 50%" in text
        assert plan.time.harvest_seconds is None

    def test_the_fastest_is_one_that_fits(self):
        cfg = config(sae=replace(MILLION, d_sae=2**14))
        slow_link = {**asdict(MACHINES["h200_node"]), "link_bandwidth": 1e15}
        everywhere = planned(cfg, processes=4, memory_gib=1000, hardware=slow_link)
        needed = [layout.n_bytes_needed["cpu"] for layout in everywhere.layouts]
        tight = planned(cfg, processes=4, memory_gib=needed[2] / 2**30 / 0.9 + 1e-3, hardware=slow_link)
        assert [layout.fits for layout in tight.layouts] == [False, False, True]
        assert tight.fastest == tight.layouts[2]
        assert planned(cfg, processes=4, memory_gib=1e-3, hardware=slow_link).fastest is None

    def test_no_time_is_claimed_where_nothing_is_known(self):
        plan = slc.plan(config(device="cuda:7"), memory_gib=1, processes=2, hardware={"latency": 1e-5})
        assert plan.time is plan.fastest is None
        assert {layout.time for layout in plan.layouts} == {None}
        assert "give all figures of its hardware" in str(plan)
        assert ASSUMPTIONS[0] not in str(plan)

    def test_by_the_command_line(self, capsys):
        flags = "--model_name tiny-base --chat_model_name tiny-chat --hook_name blocks.2.hook_resid_post --d_model 96 "
        flags += "--d_sae 1048576 --device cuda --processes 64 --hardware"
        assert main(["plan", *flags.split(), "h200_node"]) == 0
        assert "NVLink 450 GB/s" in capsys.readouterr().out
        assert main(["plan", *flags.split(), "h100"]) == 2
        assert "hardware='h100' is not one of h200_node, h200_nodes, nor a JSON object" in capsys.readouterr().err
        assert main(["plan", *flags.split(), '{"flop": 1}']) == 2
        assert "Hardware has no flop: its figures are flops, memory_bandwidth" in capsys.readouterr().err
        assert main(["plan", *flags.split(), '{"flops": "fast"}']) == 2
        assert "Hardware has numbers for figures, not {'flops': 'fast'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [("flops", 0), ("memory_bandwidth", -1), ("link_bandwidth", float("nan")), ("efficiency", 0), ("flops_float32", 0)],
)
def test_hardware_that_cannot_be_is_refused(name, value):
    with pytest.raises(ValueError, match=f"Hardware with {name}={value} never ends a step: it must be above 0"):
        replace(UNIT, **{name: value})


@pytest.mark.parametrize("name", ["latency", "fixed_seconds"])
def test_time_that_runs_backwards_is_refused(name):
    with pytest.raises(ValueError, match=f"Hardware with {name}=-1 ends before it begins"):
        replace(UNIT, **{name: -1})
