"""What the page of formats says of models in parts, and of other containers, has tests that prove it.

Each row is averaged once in tests/docs/table, too, and what libraries wrote in tests/libraries.
"""

from __future__ import annotations

import pytest

from tests.docs.pages import DOCS, ROOT, table
from tests.docs.test_promises import items, section

FORMATS = DOCS / "reference" / "formats.md"
_ARRAYS, _RANKS, _ZERO = (
    "tests/formats/arrays/test_{}.py::{}",
    "tests/formats/ranks/test_{}.py::{}",
    "tests/formats/zero",
)
_PIECES, _PARTS = "tests/formats/pieces/test_rank_shards.py", "tests/formats/folders/test_parts.py"
_REPLICAS, _MEGATRON = "tests/comparing/test_replicas.py", "tests/writing/test_like_input_megatron.py"

# The first cell of a row -> its tests.
ROWS = {
    "safetensors of ranks": [
        f"{_PIECES}::test_pieces_are_put_together_as_torch_does",
        f"{_PIECES}::test_shards_of_ranks_that_hold_whole_tensors_are_one_model",
        f"{_PIECES}::test_pieces_that_do_not_cover_a_tensor_are_refused",
        f"{_PIECES}::test_consolidated_is_taken_before_the_shards_of_ranks",
        f"{_PIECES}::test_files_with_equal_headers_are_read_by_the_tables_of_those_before",
        "tests/hostile/test_rank_shards.py::test_hostile_pieces",
    ],
    "torch.distributed.checkpoint": [
        "tests/formats/dcp/test_many_pieces.py::test_pieces_are_where_they_are",
        "tests/formats/dcp/test_many_pieces.py::test_changed_metadata_say_the_same_read_either_way",
        "tests/formats/dcp/test_many_pieces.py::test_folders_of_one_run_are_read_once_however_large",
        "tests/hostile/test_dcp.py::test_hostile_folders",
    ],
    "FSDP's files of ranks": [
        _RANKS.format("checkpoint", "test_a_tensor_is_whole_again"),
        _RANKS.format("checkpoint", "test_boxes_of_a_sharded_tensor_are_put_together"),
        _RANKS.format("checkpoint", "test_missing_ranks_are_listed"),
        _RANKS.format("checkpoint", "test_summands_are_refused"),
        _RANKS.format("checkpoint", "test_ranks_of_two_saves_are_refused"),
        _RANKS.format("placements", "test_a_rank_has_the_indices_that_torch_gives_it"),
        _RANKS.format("schedules", "test_ranks_of_two_saves_are_refused"),
        _RANKS.format("runs", "test_a_run_of_verl_is_averaged"),
        "tests/hostile/test_ranks.py::test_hostile_ranks",
    ],
    "torch_checkpointing": [
        _RANKS.format("runs", "test_items_are_one_checkpoint"),
        _RANKS.format("runs", "test_items_need_no_metadata"),
        _RANKS.format("runs", "test_a_missing_item_of_a_rank_is_named"),
        _RANKS.format("runs", "test_items_of_two_moments_are_refused"),
        _RANKS.format("runs", "test_a_first_item_that_is_cut_is_no_reason_to_pass_the_checkpoint_over"),
    ],
    "DeepSpeed": [
        f"{_ZERO}/test_checkpoint.py::test_what_deepspeed_wrote_is_what_its_script_gives",
        f"{_ZERO}/test_checkpoint.py::test_any_cut_is_put_together",
        f"{_ZERO}/test_checkpoint.py::test_stage_3_is_written_in_the_type_of_the_model",
        f"{_ZERO}/test_checkpoint.py::test_tied_names_are_one_tensor",
        f"{_ZERO}/test_checkpoint.py::test_what_is_wrong_is_one_error",
        "tests/formats/folders/test_deepspeed.py::test_a_model_in_parts_is_refused",
        "tests/hostile/test_zero.py::test_hostile_partitions",
    ],
    "DeepSpeed, universal": [
        f"{_ZERO}/test_universal.py::test_what_deepspeed_converted_is_the_save_that_it_converted",
        f"{_ZERO}/test_universal.py::test_tensors_that_ranks_cut_are_whole_there",
        f"{_ZERO}/test_universal.py::test_tensors_that_ranks_cut_before_stage_3_are_whole_there",
        f"{_ZERO}/test_universal.py::test_what_does_not_train_is_in_parts_there",
        f"{_ZERO}/test_universal.py::test_what_is_wrong_is_one_error",
        "tests/hostile/test_universal.py::test_hostile_maps",
    ],
    "Megatron-Core": [
        f"{_MEGATRON}::test_float32_weights_are_averaged_alone",
        f"{_MEGATRON}::test_weights_in_an_optimizer_s_buffers_are_refused_and_can_be_dropped",
        "tests/formats/trainers/test_sidecars.py::test_megatron_s_common_state_among_the_shards",
        "tests/test_wrong_models.py::test_a_part_of_megatron_s_is_refused",
        "tests/hostile/test_masters.py::test_hostile_masters",
    ],
    "numpy, MLX": [
        _ARRAYS.format("npz", "test_a_run_of_archives_is_averaged_checked_and_made_again"),
        _ARRAYS.format("npz", "test_headers_as_mlx_writes_them_are_read"),
        _ARRAYS.format("npz", "test_what_is_no_plain_array_is_refused"),
    ],
    "stable-baselines3": [
        _ARRAYS.format("stable_baselines", "test_the_policy_is_read_where_it_lies"),
        _ARRAYS.format("stable_baselines", "test_what_is_damaged_inside_is_one_error"),
    ],
    "NeMo's .nemo": [
        _ARRAYS.format("nemo", "test_the_weights_are_read_where_they_lie"),
        _ARRAYS.format("nemo", "test_a_model_in_parts_is_refused"),
        _ARRAYS.format("nemo", "test_a_compressed_archive_is_unpacked_as_the_hint_says"),
        "tests/hostile/test_nemo.py::test_hostile_archives",
    ],
    "Paddle": [
        _ARRAYS.format("paddle", "test_arrays_are_read_where_they_lie"),
        _ARRAYS.format("paddle", "test_no_bytes_of_arrays_are_read_with_the_headers"),
        _ARRAYS.format("paddle", "test_what_is_no_array_of_numbers_is_refused"),
    ],
    "Flax": [
        _ARRAYS.format("flax", "test_arrays_are_read_where_they_lie"),
        _ARRAYS.format("flax", "test_a_train_state_gives_its_model_and_its_clock"),
        _ARRAYS.format("flax", "test_what_is_no_tree_of_arrays_is_refused"),
    ],
    "Orbax": [
        _ARRAYS.format("orbax", "test_every_range_of_every_form_is_read"),
        _ARRAYS.format("orbax", "test_large_blocks_are_said_and_counted_in_the_memory"),
        _ARRAYS.format("orbax", "test_without_tensorstore_the_error_has_the_line_that_installs_it"),
        _ARRAYS.format("orbax", "test_a_tree_that_lies_is_one_error"),
    ],
    "files of ranks": [
        f"{_PARTS}::test_parts_with_different_tensors_are_one_model",
        f"{_PARTS}::test_copies_by_rank_are_one_model",
        f"{_PARTS}::test_tensors_that_are_cut_are_refused_with_the_converter",
        _RANKS.format("checkpoint", "test_olmo_s_files_of_ranks_are_put_together"),
    ],
    "OLMo's local sharded checkpoints": [
        _RANKS.format("flat", "test_rows_are_cut_into_parameters"),
        _RANKS.format("flat", "test_missing_ranks_are_listed"),
        _RANKS.format("flat", "test_what_does_not_say_where_its_parameters_lie_is_refused"),
        "tests/hostile/test_flat.py::test_hostile_rows",
    ],
}
# The beginning of an item below the table -> its tests.
ITEMS = {
    "**Parts of one model**": [
        f"{_PARTS}::test_one_part_that_is_named_brings_the_others",
        f"{_PARTS}::test_a_part_that_is_missing_makes_the_model_incomplete",
    ],
    "**What several ranks have whole**": [
        _RANKS.format("checkpoint", "test_replicas_of_a_parameter_must_be_equal"),
        _RANKS.format("checkpoint", "test_replicas_without_checksums_are_compared_by_samples"),
        _RANKS.format("checkpoint", "test_buffers_are_those_of_the_first_rank"),
        f"{_REPLICAS}::test_one_byte_that_samples_miss_is_found",
        f"{_REPLICAS}::test_buffers_that_differ_are_named",
        f"{_REPLICAS}::test_buffers_that_differ_are_a_warning",
        f"{_REPLICAS}::test_buffers_of_deepspeed_s_ranks_are_compared",
        f"{_REPLICAS}::test_little_is_held_of_what_is_compared",
    ],
    "**Ranks of safetensors**": [f"{_PIECES}::test_a_run_with_one_checkpoint_that_lacks_the_last_rank_is_refused"],
}


def test_each_row_stands_on_the_page() -> None:
    """Under the name that the map has."""
    assert set(ROWS) - {cells[0] for cells in table(FORMATS, "read")} == set()


@pytest.mark.parametrize("beginning", ITEMS)
def test_each_item_stands_on_the_page(beginning: str) -> None:
    """With the words that the map has."""
    assert sum(item.startswith(beginning) for item in items(section(FORMATS, "What is read"))) == 1


@pytest.mark.parametrize(
    "node", sorted({node for known in (ROWS, ITEMS) for nodes in known.values() for node in nodes})
)
def test_each_test_is_there(node: str) -> None:
    """Under the name that the map has."""
    file, name = node.split("::")
    assert f"\ndef {name}(" in (ROOT / file).read_text("utf-8")
