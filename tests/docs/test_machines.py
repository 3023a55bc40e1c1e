"""Each sentence of the page "On many machines" has tests that prove it."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import DOCS, ROOT
from tests.docs.test_promises import starting

PAGE = DOCS / "how-to" / "many-machines.md"
_BYTES, _PARTS, _LOST = (f"tests/engines/test_{name}.py" for name in ("equal_bytes", "parts", "lost_workers"))
_COMMANDS, _STORES, _SPREAD = (f"tests/engines/test_{name}.py" for name in ("commands", "stores", "spread"))
_WORKER, _OPENING, _OTHER = (f"tests/engines/test_{name}.py" for name in ("worker", "opening", "other_engines"))
_TAKEN, _DIGEST, _VERIFY = (f"tests/engines/test_{name}.py" for name in ("taken_over", "digest", "verify"))
_STAGING, _CLAIMS = "tests/storage/staging/test_shared.py", "tests/storage/staging/test_in_store.py"
_EXECUTORS = "tests/engines/test_executors.py"
_PART = "tests/engines/test_part.py"
_BEGUN = "tests/engines/test_begun_parts.py"
_BLOCKS, _SCALE = "tests/docs/test_blocks.py::test_a_page_s_commands_print_what_it_shows", "tests/test_scale.py"
_EQUAL = [
    f"{_BYTES}::test_each_form_of_output",
    f"{_BYTES}::test_several_half_lives",
    f"{_PARTS}::test_parts_in_any_order",
]
_LAUNCHED = [f"{_COMMANDS}::test_parts_that_a_launcher_starts_at_once", f"{_PART}::test_auto_takes_what_launchers_say"]
_OUTSIDE: list[str] = []  # of what others do

# The beginning of a sentence, or of a row of a table -> its tests.
KNOWN = {
    "One machine reads": _OUTSIDE,
    "Several make one average together": [_BLOCKS],
    "The bytes are those of one machine": _EQUAL,
    "All machines see checkpoints and output": [
        f"{_LOST}::test_the_output_is_not_where_workers_see_it",
        f"{_STORES}::test_a_folder_in_a_store",
    ],
    "Each worker takes credentials from its own": [
        f"{_STORES}::test_two_who_ask_at_once_of_whom_one_is_anonymous",
        "tests/storage/test_names.py::test_what_is_found_from_an_anonymous_address_is_anonymous",
    ],
    "processes=4": [f"{_LOST}::test_processes_of_which_one_is_killed"],
    "dask:local=4": [f"{_LOST}::test_dask_of_which_one_is_killed"],
    "dask://HOST:8786": [f"{_LOST}::test_a_scheduler_that_vanishes", f"{_OPENING}::test_what_is_no_address_for_dask"],
    "ray:auto, ray://HOST:10001": [f"{_OTHER}::test_ray"],
    "mpi | the other ranks": [f"{_OTHER}::test_mpi"],
    "dask-jobqueue starts": _OUTSIDE,
    "In Python any executor": [_BLOCKS, f"{_LOST}::test_a_pool_that_breaks"],
    "Every worker needs the same": [f"{_LOST}::test_a_worker_with_another_version"],
    "Which [kernel]": [f"{_WORKER}::test_workers_of_two_kernels", f"{_COMMANDS}::test_a_series_by_workers"],
    "--threads are those of one task": [f"{_OPENING}::test_the_processors_of_this_machine_are_divided"],
    "A worker does one task at a time": _OUTSIDE,
    "--max-memory holds": ["tests/engines/test_memory.py::test_what_a_worker_takes"],
    "--json tells": [f"{_COMMANDS}::test_a_series_by_workers"],
    "Parts are counted from 0": [f"{_PART}::test_what_is_no_part"],
    "Each makes its share": [f"{_PARTS}::test_tasks_are_shared_out_by_their_size"],
    "Whoever finds that all are there": [
        f"{_PARTS}::test_only_one_publishes",
        f"{_PARTS}::test_a_damaged_part_is_found_and_made_again",
        f"{_STAGING}::test_one_at_a_time_publishes",
    ],
    "The others end with code 0": [
        f"{_PARTS}::test_the_command_line",
        f"{_PARTS}::test_a_part_that_comes_late",
    ],
    "With --force such a part": [f"{_PARTS}::test_a_damaged_release_is_replaced_where_that_is_wanted"],
    "With --no-manifest nobody can tell": [f"{_PARTS}::test_a_part_that_comes_late"],
    "The parts may run at once": [f"{_PARTS}::test_parts_in_any_order", _LAUNCHED[0]],
    "Until all are made": [f"{_BEGUN}::test_which_part_is_missing", f"{_BEGUN}::test_in_a_store", _BLOCKS],
    "All parts need the same number": [
        f"{_BEGUN}::test_parts_that_make_no_whole",
        f"{_BEGUN}::test_parts_that_have_not_the_same_passes",
    ],
    "Where an engine's workers have done tasks": [f"{_BEGUN}::test_what_workers_have_done_for_one_who_is_gone"],
    "A part that finds others there": [f"{_BEGUN}::test_a_part_warns_of_the_others"],
    "--part auto takes both numbers": _LAUNCHED,
    "srun -N 8": [*_LAUNCHED, f"{_OTHER}::test_parts_that_slurm_starts"],
    "sbatch --array": _LAUNCHED,
    "mpirun of Open MPI": [_LAUNCHED[1], f"{_OTHER}::test_parts_that_mpi_starts"],
    "mpiexec of MPICH": [_LAUNCHED[1], f"{_OTHER}::test_parts_that_mpi_starts"],
    "torchrun": _LAUNCHED,
    "an Indexed Job of Kubernetes": [*_LAUNCHED, f"{_PART}::test_what_is_no_part"],
    "What lies inside counts first": [_LAUNCHED[1]],
    "A task makes a range": [f"{_BYTES}::test_each_form_of_output"],
    "It opens its inputs itself": [
        f"{_WORKER}::test_a_value_that_is_not_finite",
        f"{_BYTES}::test_a_task_that_is_done_twice",
    ],
    "The cuts follow from the output alone": [f"{_SCALE}::test_tasks_make_the_whole_output", _EQUAL[2]],
    "A file that gives fewer than 32": [
        "tests/engines/test_tasks.py::test_stretches_are_about_as_long_and_few_workers_share_them_evenly"
    ],
    "A file that several write is summed up": [f"{_BYTES}::test_workers_of_this_machine"],
    "A folder of shards": [f"{_BYTES}::test_each_form_of_output"],
    "With --checksum each worker": [f"{_BYTES}::test_each_form_of_output"],
    "What is in the making": [
        f"{_STAGING}::test_its_name_is_that_of_the_digest",
        f"{_DIGEST}::test_it_is_the_same_for_all_who_make_the_same",
        f"{_DIGEST}::test_it_differs_with_what_decides_bytes",
        f"{_DIGEST}::test_it_differs_with_the_versions",
        f"{_DIGEST}::test_it_differs_with_one_byte_of_a_checkpoint",
    ],
    "In a bucket a worker makes whole files": [f"{_STORES}::test_a_folder_in_a_store"],
    "So one worker makes all of a single file": [
        f"{_STORES}::test_a_single_file",
        f"{_STORES}::test_a_folder_in_a_store",
    ],
    "When all are there, the store copies": [f"{_STORES}::test_a_release_that_is_replaced"],
    "A store copies at most": [f"{_STORES}::test_a_single_file"],
    "The claim on the output is the lease": [
        f"{_TAKEN}::test_in_a_store",
        f"{_CLAIMS}::test_a_claim_keeps_a_second_run_out",
        f"{_CLAIMS}::test_a_claim_of_a_process_of_this_machine_that_is_gone",
    ],
    "Parts take the claim": [f"{_STORES}::test_parts"],
    "What was never finished stays": [f"{_STORES}::test_workers_that_are_lost"],
    "a worker is lost": [
        f"{_LOST}::test_processes_of_which_one_is_killed",
        f"{_LOST}::test_dask_of_which_one_is_killed",
        f"{_LOST}::test_a_task_that_kills_each_worker",
        f"{_STORES}::test_processes_of_which_one_is_killed",
    ],
    "a task kills each worker": [
        f"{_LOST}::test_a_task_that_kills_each_worker",
        f"{_OPENING}::test_a_task_that_dask_gave_to_worker_after_worker",
    ],
    "a rank of MPI dies": [f"{_OTHER}::test_mpi_of_which_a_rank_is_killed"],
    "the scheduler goes away": [f"{_LOST}::test_a_scheduler_that_vanishes"],
    "the process that asks is killed": [
        f"{_LOST}::test_the_one_who_asks_dies",
        f"{_SPREAD}::test_a_worker_looks_for_the_lease_at_each_block",
        "tests/storage/test_lease.py::test_what_another_one_says_ends_the_work",
    ],
    "Ctrl-C": [
        f"{_LOST}::test_the_one_who_asks_dies",
        f"{_EXECUTORS}::test_what_parts_have_made_outlives_an_engine_that_fails",
    ],
    "an executor is shut down": [f"{_EXECUTORS}::test_a_pool_that_was_shut_down_meanwhile"],
    "a part dies, or is interrupted": [f"{_PARTS}::test_a_part_that_died_is_made_again_alone"],
    "the part that publishes dies": [f"{_COMMANDS}::test_a_part_that_is_killed_when_it_publishes"],
    "a disk is full": [
        f"{_LOST}::test_a_worker_whose_disk_is_full",
        f"{_WORKER}::test_a_checkpoint_that_changes",
        f"{_WORKER}::test_a_value_that_is_not_finite",
    ],
    "what a task told of itself": [
        f"{_PARTS}::test_a_damaged_record_of_a_task_is_not_believed",
        f"{_PARTS}::test_a_damaged_part_is_found_and_made_again",
    ],
    "the hidden folder belongs": [f"{_PARTS}::test_a_folder_that_somebody_else_made_is_not_used"],
    "two runs make the same average": [
        f"{_SPREAD}::test_a_second_run_of_the_same_average",
        f"{_STORES}::test_a_second_run_of_the_same_average",
    ],
    "a worker stands still, and goes on when all": [
        "tests/engines/test_killed.py::test_a_worker_that_stood_still_makes_no_hidden_folder_anew"
    ],
    "the one who asks stands still": [f"{_TAKEN}::test_in_a_folder", f"{_TAKEN}::test_in_a_store"],
    "no cluster of Ray answers": [f"{_OPENING}::test_a_cluster_of_ray_that_is_gone"],
    "what was left is never finished": [
        f"{_STAGING}::test_what_nobody_finished_goes_after_seven_days",
        f"{_STAGING}::test_a_lease_that_is_renewed_spares_it",
    ],
    "verify with --against is the proof": [
        f"{_VERIFY}::test_what_is_whole_and_what_is_not",
        f"{_VERIFY}::test_the_command_line",
    ],
    "Network file systems have to": _OUTSIDE,
    "Lustre, GPFS and WeKa do": _OUTSIDE,
    "--max-shard-size makes files that": [f"{_BYTES}::test_each_form_of_output"],
    "--part compares weights": [f"{_DIGEST}::test_it_differs_with_what_decides_bytes"],
    "Machines whose C libraries": _OUTSIDE,
    "The averages of products of LoRA": [f"{_COMMANDS}::test_products_of_adapters_are_averaged_by_the_one_who_asks"],
    "So is the sample of verify --sample": [f"{_VERIFY}::test_a_sample_is_compared_by_the_one_who_asks"],
    "With --part the first are refused": [f"{_COMMANDS}::test_products_of_adapters_have_no_parts"],
    "In a bucket a part makes whole files": [f"{_STORES}::test_parts"],
}


def sentences() -> list[str]:
    """Return the sentences of the page, and the rows of its tables, without code marks."""
    text = re.sub(r"^```.*?^```$", "", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL).replace("`", "")
    found = list[str]()
    for paragraph in filter(None, map(str.strip, text.split("\n\n"))):
        if paragraph.startswith("|"):
            found += [row.strip("| ") for row in paragraph.splitlines()[2:]]
        elif not paragraph.startswith("#"):
            joined = " ".join(paragraph.split()).removeprefix("- ")
            found += re.split(r"(?<=[.:]) (?:- )?(?=[A-Z-])", joined)
    return found


def test_each_sentence_has_its_tests():
    """A sentence without a test is none that may be said; a test without a sentence is in the wrong list."""
    said = sentences()
    assert [sentence for sentence in said if len(list(starting(sentence, KNOWN))) != 1] == []
    assert set(KNOWN) - {each for sentence in said for each in starting(sentence, KNOWN)} == set()


@pytest.mark.parametrize("node", sorted({node for nodes in KNOWN.values() for node in nodes}))
def test_each_test_is_there(node: str):
    """Under the name that the list has."""
    file, name = node.split("::")
    assert f"\ndef {name}(" in (ROOT / file).read_text("utf-8")
