"""The page on `watch`: the beginning of each paragraph and item -> its tests."""

_WATCH, _LOOP, _LOOKING, _PROCESS, _COST, _SIZES, _WHOLE, _STORES = (
    f"tests/watching/test_{name}.py"
    for name in ("watch", "loop", "looking", "process", "cost", "sizes", "whole", "stores")
)
_COMMAND, _VERIFIED, _KILLS = "tests/cli/test_watch.py", "tests/release/test_watched.py", "tests/faults/test_watch.py"
_TRAINERS, _SIGNALS = "tests/trainers/test_watch.py", "tests/system/test_signals.py"

WATCHING = {
    "A trainer that keeps the last two checkpoints": [
        f"{_TRAINERS}::test_watch_keeps_up_with_a_trainer_that_deletes_its_checkpoints",
        f"{_PROCESS}::test_a_training_that_deletes_its_checkpoints",
        f"{_WATCH}::test_one_after_another_gives_the_bytes_of_all_at_once",
        f"{_LOOP}::test_it_holds_no_file_open_that_may_be_deleted",
    ],
    "Start it when the training starts": [
        f"{_LOOP}::test_a_folder_without_checkpoints_is_waited_for",
        f"{_COMMAND}::test_a_folder_that_is_not_there_is_an_error_at_once",
    ],
    "It ends when the trainer says": [
        f"{_LOOP}::test_it_ends_where_the_trainer_says_that_it_is_the_end",
        f"{_LOOP}::test_it_ends_at_until",
        f"{_PROCESS}::test_a_signal_publishes_what_is_folded",
        f"{_LOOP}::test_an_interrupt_publishes_what_is_folded",
        f"{_SIGNALS}::test_while_something_is_finished_a_second_signal_ends_at_once",
        f"{_COMMAND}::test_it_says_what_entered_and_prints_where_it_is",
        f"{_PROCESS}::test_a_terminal_shows_that_it_waits",
    ],
    "The averages load like those of ema-cli average.": [
        f"{_WATCH}::test_it_gives_what_average_gives",
        f"{_WATCH}::test_frozen_values_stay_to_the_bit",
        f"{_WATCH}::test_bfloat16_is_at_most_one_step_off_in_one_value_of_a_thousand",
        f"{_WATCH}::test_a_hundred_checkpoints_of_half_life_err_no_more_than_one",
        f"{_WATCH}::test_the_manifest_lists_what_entered",
        f"{_LOOP}::test_threads_do_not_show_in_the_averages",
    ],
    "With --against ckpts/ the checkpoints are averaged anew": [
        f"{_VERIFIED}::test_what_is_all_there_is_averaged_anew",
        f"{_VERIFIED}::test_what_is_more_than_rounding_is_a_problem",
        f"{_VERIFIED}::test_what_is_gone_is_said_and_not_compared",
        f"{_VERIFIED}::test_an_input_that_has_changed_is_a_problem",
        f"{_VERIFIED}::test_weights_that_are_not_those_of_the_law_are_a_problem",
    ],
    "From cron, a trainer's hook": [
        f"{_WATCH}::test_each_checkpoint_enters_once",
        f"{_WATCH}::test_old_checkpoints_without_a_mark_are_no_gap",
        f"{_LOOP}::test_once_says_what_holds_back_the_rest_and_tells_once_what_came_too_late",
    ],
    "A training that writes one file again and again": [
        f"{_WATCH}::test_a_file_that_is_written_again_and_again_enters_once_for_each_clock"
    ],
    "A loader that wants more than weights": [
        f"{_WHOLE}::test_it_is_what_average_writes_though_each_checkpoint_is_gone",
        f"{_WHOLE}::test_one_that_is_deleted_while_it_is_copied_leaves_no_trace",
        f"{_WHOLE}::test_one_of_which_a_side_file_changes_meanwhile_enters_as_it_is_then",
        f"{_WHOLE}::test_ties_that_ended_before_are_no_ties",
        f"{_WHOLE}::test_the_command_takes_the_forms_of_average",
    ],
    "What [goes on training from it]": [
        f"{_WHOLE}::test_it_is_what_average_writes_though_each_checkpoint_is_gone",
        f"{_WHOLE}::test_what_cannot_be_written_over_again_is_refused_at_the_first",
        f"{_TRAINERS}::test_watch_keeps_a_checkpoint_that_the_trainer_loads",
    ],
    "averages.watch is what it goes on with": [
        f"{_WATCH}::test_the_state_is_what_a_training_stores",
        f"{_COST}::test_each_file_is_read_once",
        f"{_COST}::test_memory_does_not_grow_with_the_model",
        f"{_LOOP}::test_the_room_of_older_moments_is_free_while_it_catches_up",
        f"{_WHOLE}::test_several_go_into_one_folder_and_what_is_kept_stays_readable",
        f"{_WHOLE}::test_a_watch_that_kept_weights_alone_does_not_go_on_with_more",
        f"{_LOOKING}::test_a_copy_of_the_state_and_the_run_elsewhere_goes_on",
    ],
    "Any half-life between those that were watched": [
        f"{_SIZES}::test_a_half_life_between_two_watched_ones_is_made_of_what_is_kept"
    ],
    "Run and averages may lie": [
        f"{_STORES}::test_it_is_as_on_a_disk",
        f"{_STORES}::test_it_works_in_a_bucket_of_a_real_store",
    ],
    "What its trainer marks is believed": [
        f"{_LOOP}::test_a_distributed_checkpoint_that_is_saved_asynchronously_holds_back_those_after_it",
        "tests/runs/test_search.py::test_dot_and_unfinished_names_do_not_enter",
    ],
    "Anything else is complete when": [
        f"{_LOOP}::test_a_file_that_grows_is_not_folded",
        f"{_LOOP}::test_one_that_is_deleted_or_rewritten_while_it_is_read_leaves_no_trace",
    ],
    "A file that was written in place": [
        f"{_LOOKING}::test_a_file_that_is_written_in_place_is_another_one",
        f"{_LOOKING}::test_one_that_is_written_in_place_while_it_is_read_enters_as_it_is_then",
        f"{_LOOKING}::test_what_is_only_touched_is_the_same",
    ],
    "One that is not complete holds back": [
        f"{_LOOP}::test_one_that_is_not_complete_holds_back_those_after_it",
        f"{_LOOP}::test_patience_ends",
        f"{_LOOP}::test_one_that_is_given_up_holds_back_no_longer_and_is_told",
    ],
    "The folder is looked at every ten seconds": [
        f"{_LOOP}::test_headers_are_read_only_when_something_has_changed",
        f"{_PROCESS}::test_it_takes_no_processor_while_it_waits",
    ],
    "It is killed.": [
        f"{_KILLS}::test_a_kill_at_each_call_is_as_if_it_had_not_been",
        f"{_PROCESS}::test_killed_again_and_again_it_comes_to_the_same_bits",
        f"{_STORES}::test_killed_at_any_change_of_a_store_it_goes_on_with_the_same_bytes",
    ],
    "A checkpoint was deleted before it was read.": [
        f"{_WATCH}::test_a_gap_is_told_and_the_half_life_kept_true",
        f"{_LOOP}::test_what_is_deleted_while_others_wait_is_told",
        f"{_PROCESS}::test_deleted_by_the_hundred",
    ],
    "The training was resumed from an earlier point.": [
        f"{_WATCH}::test_a_clock_that_goes_back_is_an_error_and_restart_from_goes_on",
        f"{_WATCH}::test_the_same_clock_with_other_contents_is_an_error",
        f"{_WHOLE}::test_it_goes_back_to_a_moment_with_the_checkpoint_of_then",
    ],
    "Two watches of one output": [
        f"{_COMMAND}::test_two_watches_of_one_output_exit_with_5",
        f"{_STORES}::test_a_second_watch_of_one_output_in_a_store_is_refused",
    ],
    "A checkpoint holds NaN.": [
        f"{_WATCH}::test_a_nan_is_an_error_and_leaves_the_averages_as_they_were",
        f"{_WATCH}::test_an_infinity_that_ends_is_an_error_of_the_checkpoint_that_lacks_it",
    ],
    "Laws that need the future are refused": [
        f"{_WATCH}::test_what_needs_the_future_or_makes_no_sense_is_refused",
        f"{_COMMAND}::test_what_makes_no_sense_is_a_usage_error",
        f"{_WATCH}::test_a_half_life_of_the_training_so_far_is_watched_too",
    ],
}
