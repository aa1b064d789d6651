"""What counts as hung, by a clock of the test's own: CPU time and counts go in, a verdict comes out."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from citadel_supervise import COUNTERS, Limits, Liveness, Sample, read_metrics

STEP_SECONDS = 5
LIMITS = Limits(idle_seconds=30, busy_seconds=10, suspect_seconds=10, asleep_seconds=30, stall_seconds=280)


@dataclass
class Service:
    """A service as it shows itself every five seconds. `answers`: what becomes of the work that it is given."""

    running: int = 0
    connected: int = 0
    moving: bool = False
    workers_awake: bool = False
    server_awake: bool = True
    silent: bool = False
    answers: str = "answer"
    now: float = 1000.0
    given: list[float] = field(default_factory=list)
    suspect: list[float] = field(default_factory=list)
    count: float = 0
    workers_cpu: float = 0
    server_cpu: float = 0

    def __post_init__(self) -> None:
        self.liveness = Liveness(LIMITS, self.now)
        self.began = self.now

    def live(self, seconds: float) -> tuple[float, str] | None:
        """Live so long, or until it is called hung; when that was after the beginning, and why."""
        end = self.now + seconds
        while self.now < end:
            self.now += STEP_SECONDS
            self.count += self.moving
            self.workers_cpu += STEP_SECONDS * self.workers_awake
            self.server_cpu += STEP_SECONDS * self.server_awake
            sample = None if self.silent else Sample(running=self.running, counters=(self.count,))
            self.liveness.observe(
                self.now,
                sample,
                workers_cpu_seconds=self.workers_cpu,
                server_cpu_seconds=self.server_cpu,
                connected=self.connected,
                silence="timed out" if self.silent else "",
            )
            if self.liveness.wants_work(self.now):
                self.given.append(self.now - self.began)
                self.liveness.given_work(self.now)
                if self.answers == "answer":
                    self.count += 1
                    self.liveness.work_done(self.now)
                elif self.answers == "refuse":
                    self.liveness.work_refused(self.now)
            if self.liveness.is_suspect(self.now):
                self.suspect.append(self.now - self.began)
            if (reason := self.liveness.verdict(self.now)) is not None:
                return self.now - self.began, reason
        return None


HOUR = 3600


def test_an_idle_service_is_given_work_now_and_then_and_lives() -> None:
    service = Service()
    assert service.live(HOUR) is None
    assert HOUR // 35 <= len(service.given) <= HOUR // 30


def test_a_service_that_counts_is_never_asked_and_never_hung() -> None:
    # Full: what it were asked would wait for its turn for longer than any limit.
    service = Service(running=9, moving=True, workers_awake=True, answers="nothing")
    assert service.live(HOUR) is None
    assert service.given == []


def test_a_step_may_take_long_while_the_workers_compute() -> None:
    service = Service(running=1, workers_awake=True, answers="nothing")
    assert service.live(270) is None
    service.moving = True
    assert service.live(HOUR) is None


def test_a_step_that_takes_longer_than_any_can_is_no_step() -> None:
    hung = Service(running=1, workers_awake=True, answers="nothing").live(HOUR)
    assert hung == (10 + 280, "no token for 280 s, not even one that it was asked for; requests running: 1; its workers using the CPU")


def test_workers_that_sleep_over_their_work_are_found_soon() -> None:
    hung = Service(running=2, answers="nothing").live(HOUR)
    assert hung == (10 + 30, "no token for 30 s, not even one that it was asked for; requests running: 2; its workers asleep")


def test_an_engine_that_is_stuck_before_it_reports_a_request_is_found() -> None:
    """Its number of running requests is still that of before."""
    hung = Service(running=0, answers="nothing").live(HOUR)
    assert hung is not None
    assert hung[0] == 30 + 30


def test_whom_the_edge_has_sent_is_a_reason_to_look_sooner_but_no_proof() -> None:
    """Somebody may be connected without having sent all of a request."""
    hung = Service(connected=1, answers="nothing").live(HOUR)
    assert hung is not None
    assert hung[0] == 10 + 30
    assert Service(connected=1).live(HOUR) is None


def test_who_sleeps_over_its_work_is_suspect_at_once_and_no_longer_than_that() -> None:
    service = Service(running=2, answers="nothing")
    assert service.live(35) is None
    assert service.suspect[0] == 10 + 10
    service.moving = True
    assert service.live(HOUR) is None
    assert service.suspect == [20, 25, 30, 35]
    working = Service(running=1, workers_awake=True, answers="nothing")
    working.live(200)
    assert working.suspect == []


def test_a_stale_number_of_running_requests_does_not_make_an_idle_service_hung() -> None:
    service = Service(running=3)
    assert service.live(HOUR) is None
    assert service.given


def test_workers_that_fall_asleep_in_the_middle_are_found() -> None:
    service = Service(running=1, workers_awake=True, answers="nothing")
    assert service.live(100) is None
    service.workers_awake = False
    hung = service.live(HOUR)
    assert hung is not None
    assert hung[0] == 100 + 30


def test_a_service_that_refuses_whatever_it_is_asked_is_hung() -> None:
    hung = Service(answers="refuse").live(HOUR)
    assert hung is not None
    assert hung[0] == 30 + 30


def test_one_refusal_is_forgiven() -> None:
    service = Service(answers="refuse")
    assert service.live(45) is None
    service.answers = "answer"
    assert service.live(HOUR) is None


@pytest.mark.parametrize(("awake", "seconds"), [(False, 5 + 30), (True, 5 + 280)])
def test_a_server_that_does_not_answer_is_hung_sooner_when_it_sleeps(awake: bool, seconds: int) -> None:
    # Its workers go on with what they had, which is no excuse for it.
    hung = Service(silent=True, workers_awake=True, server_awake=awake).live(HOUR)
    assert hung is not None
    assert hung[0] == seconds
    assert hung[1] == f"it has not answered for {seconds - 5} s (timed out), {'using the CPU' if awake else 'asleep'}"


def test_silence_that_ends_is_forgiven() -> None:
    service = Service(silent=True, server_awake=False)
    assert service.live(30) is None
    service.silent = False
    assert service.live(HOUR) is None


def test_unknown_cpu_time_is_no_sleep() -> None:
    liveness = Liveness(LIMITS, 0)
    liveness.given_work(0)
    for now in range(5, 280, 5):
        liveness.observe(now, Sample(running=0, counters=(0,)), workers_cpu_seconds=None, server_cpu_seconds=None)
        assert liveness.verdict(now) is None
    assert liveness.verdict(280) is not None


METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="hermes-2"} 2.0
vllm:num_requests_running{engine="1",model_name="hermes-2"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="hermes-2",reason="capacity"} 7.0
vllm:generation_tokens_total{engine="0",model_name="hermes-2"} 1.25e+06
process_cpu_seconds_total 12.5
"""


def test_metrics_are_read_by_name_and_added_up_over_engines() -> None:
    sample = read_metrics(METRICS)
    assert sample.running == 3
    assert dict(zip(COUNTERS, sample.counters, strict=True))["vllm:generation_tokens_total"] == 1_250_000


def test_what_the_server_counts_by_itself_is_no_progress() -> None:
    changed = METRICS.replace("12.5", "99").replace("} 7.0", "} 8.0")
    assert changed != METRICS
    assert read_metrics(changed) == read_metrics(METRICS)
