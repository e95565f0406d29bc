"""Every rule of what a failure is and what follows from it, on the words that the libraries really use."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bco_ray.training.failures import (
    LONGEST_RETRY_SECONDS,
    RETRY_SECONDS,
    Cause,
    GiveUp,
    Kind,
    Retry,
    Situation,
    Symptom,
    cause_of,
    decide,
    kind_of,
    silent,
    size_for,
)

GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:34221",
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Read error [10.0.0.7]:1: Connection reset by peer",
    "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation",
    "Application timeout caused pair closure",
)
NCCL = (
    "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:77, remote process exited or there was a network "
    "error, NCCL version 2.27.3\nncclRemoteError: A call failed possibly due to a network error or a remote process "
    "exiting prematurely.\nLast error:\nsocketPollConnect: connect to 10.0.0.7 returned Connection refused",
    "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=ALLREDUCE, NumelIn=4096) ran "
    "for 600029 milliseconds before timing out.",
    "NCCL communicator was aborted on rank 1.",
)
CUDA_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.17 GiB is "
    "free. Including non-PyTorch memory, this process has 77.93 GiB memory in use."
)
CUDA_ERROR = (
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported at some "
    "other API call, so the stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
    "\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)

KINDS: list[tuple[str, str, Kind]] = [
    *(("RuntimeError", text, "connection") for text in GLOO[:3]),
    *(("DistBackendError", text, "connection") for text in (*GLOO, *NCCL)),
    (
        "DistNetworkError",
        "The client socket has timed out after 60000ms while trying to connect to h",
        "connection",
    ),
    ("ConnectionResetError", "[Errno 104] Connection reset by peer", "connection"),
    ("BrokenPipeError", "[Errno 32] Broken pipe", "connection"),
    ("OutOfMemoryError", CUDA_MEMORY, "out_of_memory"),
    ("RuntimeError", "CUDA error: out of memory", "out_of_memory"),
    ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "out_of_memory"),
    ("DistBackendError", "ncclUnhandledCudaError: Last error:\nCuda failure 'out of memory'", "out_of_memory"),
    (
        "RuntimeError",
        "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)",
        "out_of_memory",
    ),
    ("MemoryError", "", "out_of_memory"),
    ("OutOfMemoryError", "Task was killed due to the node running low on memory.", "out_of_memory"),
    ("ActorDiedError", "The actor died because its node has died. Node Id: 1f. Connection closed", "lost"),
    ("WorkerHealthCheckFailedError", "A worker health check failed.", "lost"),
    ("ActorUnavailableError", "The actor is unavailable: rpc error: connection reset", "lost"),
    ("NodeDiedError", "", "lost"),
    ("WorkerCrashedError", "The worker died unexpectedly while executing this task.", "lost"),
    ("OSError", "[Errno 28] No space left on device: '/data/run/model'", "storage"),
    ("OSError", "[Errno 5] Input/output error", "storage"),
    ("FileNotFoundError", "[Errno 2] No such file or directory: '/mnt/model'", "storage"),
    ("StorageError", "checkpoint 50 cannot be read; the workers' logs say why.", "storage"),
    (
        "StorageError",
        "s3://b/x: cannot be read (curlCode: 28, Timeout was reached: timed out).",
        "storage",
    ),
    ("RuntimeError", CUDA_ERROR, "error"),
    ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied (6x32 and 64x32)", "error"),
    ("ValueError", "too many values to unpack (expected 2)", "error"),
    ("KeyError", "'logps'", "error"),
    ("PermissionError", "[Errno 13] Permission denied: '/data'", "error"),
]


@pytest.mark.parametrize(("name", "message", "kind"), KINDS)
def test_what_sort_of_failure_that_is(name: str, message: str, kind: Kind) -> None:
    assert kind_of(Symptom(name, message)) == kind


@pytest.mark.parametrize("kind", ["refused", "hung", "lost", "no_room"])
def test_what_is_known_already_is_believed(kind: Kind) -> None:
    assert kind_of(Symptom("RuntimeError", CUDA_MEMORY, kind=kind)) == kind


NOISE = [Symptom("RuntimeError", text, rank, at=5) for rank, text in enumerate(GLOO[:2])]
GONE = Symptom("", "its process is gone: SYSTEM_ERROR", 2, at=9, kind="lost")
CAUSES = {
    "worker 2: OutOfMemoryError: " + CUDA_MEMORY: Symptom("OutOfMemoryError", CUDA_MEMORY, 2, at=7),
    "worker 2: ValueError: 3 is not 4": Symptom("ValueError", "3 is not 4", 2, at=7),
    "worker 2: OSError: [Errno 28] full": Symptom("OSError", "[Errno 28] full", 2, at=7),
    "worker 2: no progress for 9 s": Symptom("", "no progress for 9 s", 2, at=7, kind="hung"),
    "worker 2: the log is empty": Symptom("", "the log is empty", 2, at=7, kind="refused"),
    "worker 2: RuntimeError: CUDA error: an illegal memory access was encountered": Symptom(
        "RuntimeError", CUDA_ERROR, 2, at=7
    ),
}


@pytest.mark.parametrize("message", CAUSES)
def test_the_cause_beats_the_noise_in_any_order(message: str) -> None:
    """The process with the cause is gone, and the others complain before it could say anything."""
    for order in itertools.permutations([CAUSES[message], GONE, *NOISE]):
        cause = cause_of(order)
        assert cause == Cause(kind_of(CAUSES[message]), message)


def test_a_process_that_is_gone_beats_the_connections_to_it() -> None:
    for order in itertools.permutations([GONE, *NOISE]):
        assert cause_of(order) == Cause("lost", "worker 2: its process is gone: SYSTEM_ERROR")


def test_of_equal_ones_the_first_in_time_is_the_cause() -> None:
    later, earlier = Symptom("ValueError", "later", 0, at=8), Symptom("KeyError", "'earlier'", 1, at=7)
    assert cause_of([later, earlier]).message == "worker 1: KeyError: 'earlier'"


def test_nobody_said_why() -> None:
    assert cause_of([]) == Cause("error", "training failed and nobody said why")


@pytest.mark.parametrize(
    ("name", "message", "line"),
    [
        ("ValueError", "", "ValueError"),
        ("ValueError", "\n  one\ntwo\n", "ValueError: one"),
        ("", "gone", "gone"),
        ("ValueError", "a ValueError came", "a ValueError came"),
        ("X", "Traceback (most recent call last):\n  File x\nKeyError: 'a'\n", "X: KeyError: 'a'"),
    ],
)
def test_one_line_says_it(name: str, message: str, line: str) -> None:
    assert cause_of([Symptom(name, message)]).message == line


SYMPTOMS = st.builds(
    Symptom,
    type=st.sampled_from(["RuntimeError", "OSError", "ActorDiedError", "MemoryError", "StorageError", ""]),
    message=st.sampled_from([*GLOO, *NCCL, CUDA_MEMORY, CUDA_ERROR, "boom", ""]),
    rank=st.none() | st.integers(0, 3),
    at=st.integers(0, 10**6).map(float),
    kind=st.none() | st.sampled_from(["refused", "hung", "lost", "no_room"]),
)


@given(st.lists(SYMPTOMS, min_size=1, max_size=6, unique_by=lambda symptom: symptom.at), st.randoms())
def test_the_order_does_not_matter(symptoms: list[Symptom], random: object) -> None:
    shuffled = list(symptoms)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert cause_of(shuffled) == cause_of(symptoms)
    assert "\n" not in cause_of(symptoms).message


class TestSilent:
    HOSTS = {0: "node-a", 1: "node-b", 2: "node-b"}  # noqa: RUF012

    def test_those_that_say_nothing_are_gone(self) -> None:
        found = silent(NOISE, self.HOSTS)
        assert found == [Symptom("", "its process or its node (node-b) is gone", 2, kind="lost")]
        assert cause_of([*NOISE, *found]).message == "worker 2: its process or its node (node-b) is gone"

    def test_nobody_need_be_found_if_somebody_has_a_cause(self) -> None:
        assert silent([*NOISE, Symptom("ValueError", "boom", 0)], self.HOSTS) == []
        assert silent([GONE], self.HOSTS) == []

    def test_all_have_spoken(self) -> None:
        assert silent([*NOISE, Symptom("RuntimeError", GLOO[2], 2)], self.HOSTS) == []
        assert silent(NOISE, {}) == []


def situation(**changes: object) -> Situation:
    now = {"workers": 2, "least": 2, "most": 2, "room": 2, "in_a_row": 1, "max_failures": 2, "repeated": False,
           "can_halve": True}  # fmt: skip
    return Situation(**{**now, **changes})  # type: ignore[arg-type]


DECISIONS: list[tuple[Kind, dict[str, object], Retry | str]] = [
    ("lost", {}, Retry(2, RETRY_SECONDS)),
    ("connection", {"in_a_row": 2}, Retry(2, 2 * RETRY_SECONDS)),
    ("lost", {"in_a_row": 3}, r"boom \(failed 3 times in a row without a new checkpoint; training.max_failures is 2\)"),
    ("lost", {"max_failures": 0}, r"boom \(failed once; training.max_failures is 0\)"),
    ("refused", {}, "boom"),
    ("error", {}, Retry(2, RETRY_SECONDS)),
    ("error", {"repeated": True, "in_a_row": 2}, r"boom \(twice in a row: it would come again\)"),
    ("lost", {"repeated": True, "in_a_row": 2}, Retry(2, 2 * RETRY_SECONDS)),
    ("storage", {"repeated": True, "in_a_row": 2}, Retry(2, 2 * RETRY_SECONDS)),
    ("hung", {"in_a_row": 2}, Retry(2, 2 * RETRY_SECONDS)),
    ("out_of_memory", {}, Retry(2, RETRY_SECONDS, halve_micro_batch=True)),
    ("out_of_memory", {"can_halve": False}, "training.gradient_checkpointing"),
    ("no_room", {"least": 1, "room": 1, "in_a_row": 9}, Retry(1, 0.0)),
    ("lost", {"least": 1, "most": 4, "workers": 4, "room": 3}, Retry(3, RETRY_SECONDS)),
    ("lost", {"least": 1, "most": 4, "workers": 2, "room": 9}, Retry(4, RETRY_SECONDS)),
    ("lost", {"least": 2, "most": 4, "workers": 4, "room": 0}, Retry(2, RETRY_SECONDS)),
    ("lost", {"in_a_row": 50, "max_failures": 99}, Retry(2, LONGEST_RETRY_SECONDS)),
]


@pytest.mark.parametrize(("kind", "changes", "wanted"), DECISIONS)
def test_what_follows(kind: Kind, changes: dict[str, object], wanted: Retry | str) -> None:
    decision = decide(Cause(kind, "boom"), situation(**changes))
    if isinstance(wanted, Retry):
        assert decision == wanted
    else:
        assert isinstance(decision, GiveUp)
        with pytest.raises(RuntimeError, match=wanted):
            raise RuntimeError(decision.reason)


COUNT = st.integers(0, 100)


@given(
    st.sampled_from(["refused", "hung", "out_of_memory", "storage", "error", "lost", "no_room", "connection"]),
    st.integers(1, 50), COUNT, COUNT, COUNT, COUNT, st.booleans(), st.booleans(),
)  # fmt: skip
def test_whatever_happens_sizes_and_pauses_stay_within_limits(
    kind: Kind, least: int, more: int, room: int, in_a_row: int, max_failures: int, repeated: bool, can_halve: bool
) -> None:
    now = situation(
        least=least, most=least + more, room=room, in_a_row=in_a_row, max_failures=max_failures, repeated=repeated,
        can_halve=can_halve,
    )  # fmt: skip
    assert least <= size_for(now) <= least + more
    decision = decide(Cause(kind, "boom"), now)
    if isinstance(decision, Retry):
        assert decision.workers == size_for(now, now.workers - 1 if kind == "no_room" else None)
        assert 0 <= decision.wait_seconds <= LONGEST_RETRY_SECONDS
        assert not decision.halve_micro_batch or (kind == "out_of_memory" and can_halve)
        assert kind == "no_room" or in_a_row <= max_failures or (kind == "out_of_memory" and max_failures > 0)
    else:
        assert "boom" in decision.reason
        assert kind != "no_room"
