"""The page on series: the beginning of each paragraph -> its tests."""

_COMMAND, _PLANS, _PASSES = "tests/cli/test_series.py", "tests/planning/test_series.py", "tests/test_passes.py"

SERIES = {
    "While the learning rate is still high": [
        f"{_PLANS}::test_there_is_an_average_at_each_checkpoint_for_each_recipe",
        f"{_PLANS}::test_windows_and_last_hold_at_each_clock",
        f"{_PASSES}::test_a_series_reads_each_byte_once",
    ],
    "--series is an average at each checkpoint": [
        f"{_PLANS}::test_every_so_much_is_the_first_checkpoint_at_or_after_and_the_newest",
        f"{_PLANS}::test_what_is_no_series_is_refused",
        f"{_COMMAND}::test_what_makes_no_sense_is_refused",
    ],
    "Where nothing entered since": [
        f"{_PLANS}::test_where_nothing_entered_since_there_is_no_average",
        f"{_COMMAND}::test_the_table_of_a_long_series_is_bounded",
        f"{_COMMAND}::test_what_would_be_made_is_a_row_for_each",
    ],
    "All of them appear together": [
        f"{_COMMAND}::test_the_averages_are_named_after_half_life_and_clock",
        f"{_COMMAND}::test_windows_have_a_placeholder",
    ],
    "Each is to the byte what --stop": [
        f"{_PASSES}::test_each_average_of_a_series_is_what_it_would_be_alone",
        f"{_COMMAND}::test_each_verifies_and_is_made_again_by_its_manifest",
        f"{_COMMAND}::test_each_stays_beside_what_its_own_newest_holds",
    ],
    "--min-count and the other demands": ["tests/planning/test_gates.py::test_each_of_several_averages_must_hold"],
    "A series takes as much disk": [
        f"{_PASSES}::test_several_passes_give_the_same_bytes",
        f"{_PASSES}::test_several_passes_are_told_before",
        f"{_PASSES}::test_little_memory_is_more_passes_and_not_an_error",
        f"{_COMMAND}::test_a_program_learns_clocks_passes_and_sizes",
    ],
    "With --from stored there is": [f"{_COMMAND}::test_stored_averages_make_a_series_too"],
    "[tune](choose-a-half-life.md": [
        "tests/tuning/test_tune.py::test_a_series_from_python",
        f"{_COMMAND}::test_a_series_of_stored_averages_is_tuned",
    ],
}
