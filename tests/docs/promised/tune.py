"""What the page on half-lives says of `tune`: the beginning of each sentence -> its tests."""

_CLI, _SEARCHES, _PYTHON = "tests/cli/test_tune.py", "tests/cli/test_tune_searches.py", "tests/tuning/test_tune.py"
_COMMAND, _METRIC, _RESULTS, _SEARCH, _CANDIDATE, _KILLED = (
    f"tests/tuning/test_{name}.py" for name in ("command", "metric", "results", "search", "candidate", "killed")
)

TUNE = {
    "Here the size of the weights": ["tests/docs/test_blocks.py::test_a_page_s_commands_print_what_it_shows"],
    "tune makes the candidates, runs your evaluation": [f"{_CLI}::test_it_writes_the_best_average_and_prints_where"],
    "The evaluation is any command that": [
        f"{_METRIC}::test_the_last_number_of_the_last_line",
        f"{_COMMAND}::test_a_command_that_cannot_be_run_is_refused_before_anything",
    ],
    "{path} is what --output would be": [
        f"{_CLI}::test_candidates_load_as_the_output_does_and_few_lie_there_at_once",
        f"{_CLI}::test_candidates_may_have_the_form_of_the_input",
        f"{_CANDIDATE}::test_a_candidate_has_the_bytes_of_average_while_it_is_evaluated",
    ],
    "EMA_PATH and EMA_HALF_LIFE say the same": [
        f"{_COMMAND}::test_it_gets_the_path_as_a_word_and_in_the_environment",
        f"{_COMMAND}::test_the_last_checkpoint_has_the_variables_of_the_others",
    ],
    "The command is split into words": [
        f"{_COMMAND}::test_nothing_is_expanded_without_a_shell_and_the_shell_gets_a_quoted_path"
    ],
    "It runs in your working folder": [f"{_CLI}::test_evaluations_run_where_the_user_is_and_as_many_at_once_as_said"],
    "--jobs 4 runs four at once": [
        f"{_CLI}::test_evaluations_run_where_the_user_is_and_as_many_at_once_as_said",
        f"{_CLI}::test_several_at_once_give_the_same",
        f"{_COMMAND}::test_devices_are_given_in_turn_and_one_at_a_time",
    ],
    "The metric is the last number": [
        f"{_METRIC}::test_the_last_number_of_the_last_line",
        f"{_METRIC}::test_a_key_of_the_last_json_object",
        f"{_CLI}::test_a_range_is_searched_around_the_best",
    ],
    "Less is better, unless": [
        f"{_RESULTS}::test_the_best_wins",
        f"{_PYTHON}::test_more_is_better_where_it_is_said",
        f"{_CLI}::test_more_is_better_and_the_rest_of_the_law_is_the_same_for_all",
    ],
    "The last checkpoint is always evaluated": [
        f"{_PYTHON}::test_the_winner_has_the_bytes_of_average",
        f"{_PYTHON}::test_a_half_life_with_the_weights_of_another_is_not_evaluated",
    ],
    "Where it is the best, nothing is written": [
        f"{_CLI}::test_the_last_checkpoint_is_written_only_where_it_is_allowed",
        f"{_RESULTS}::test_the_last_checkpoint_wins_where_it_is_better",
    ],
    "A half-life with the same weights": [
        f"{_PYTHON}::test_a_half_life_with_the_weights_of_another_is_not_evaluated",
        f"{_CLI}::test_an_average_that_is_the_last_checkpoint_is_not_evaluated",
        f"{_CLI}::test_results_that_stood_for_another_are_taken_without_it",
    ],
    "An evaluation that fails, prints no number": [
        f"{_CLI}::test_a_candidate_that_fails_does_not_stop_the_others",
        f"{_SEARCHES}::test_among_noise_and_failures_of_every_kind_the_valley_is_found",
        f"{_METRIC}::test_where_there_is_no_metric_the_reason_says_so",
        f"{_COMMAND}::test_a_command_that_fails_says_why_with_its_last_lines",
        f"{_COMMAND}::test_a_command_that_takes_too_long_is_ended_with_all_that_it_started",
        f"{_RESULTS}::test_failures_win_nothing",
    ],
    "Where all fail, nothing is written": [f"{_CLI}::test_where_every_candidate_fails_nothing_is_written"],
    "--repeats 3 evaluates each": [f"{_SEARCHES}::test_a_tie_within_the_spread_goes_to_the_shorter_half_life"],
    "What differs by no more than the spread": [
        f"{_SEARCHES}::test_a_tie_within_the_spread_goes_to_the_shorter_half_life",
        f"{_RESULTS}::test_what_lies_within_the_spread_is_a_tie",
        f"{_PYTHON}::test_several_runs_of_one_candidate_give_mean_and_spread",
    ],
    "Without it, only equal metrics": [f"{_RESULTS}::test_equal_metrics_are_a_tie_that_the_shorter_half_life_wins"],
    "--start, --stop, --last and other options": [
        f"{_CLI}::test_more_is_better_and_the_rest_of_the_law_is_the_same_for_all",
        f"{_SEARCHES}::test_any_law_with_a_number_is_tuned",
    ],
    "--dry-run shows the candidates": [f"{_SEARCHES}::test_what_would_be_evaluated_is_shown_and_nothing_is_done"],
    "Where there is no room for all": [
        f"{_CLI}::test_where_there_is_little_room_few_lie_there_at_once",
        f"{_CLI}::test_candidates_load_as_the_output_does_and_few_lie_there_at_once",
    ],
    "--series evaluates each candidate": [
        f"{_SEARCHES}::test_a_series_is_tuned_and_the_best_clock_wins",
        f"{_SEARCHES}::test_a_series_is_searched_in_a_range",
        f"{_PYTHON}::test_a_series_from_python",
        "tests/cli/test_series.py::test_a_series_of_stored_averages_is_tuned",
    ],
    "--from stored makes the candidates": [f"{_CLI}::test_averages_that_the_training_stored_can_be_tuned"],
    "The winner is what average would write": [
        f"{_PYTHON}::test_the_winner_has_the_bytes_of_average",
        f"{_PYTHON}::test_the_manifest_is_that_of_average_and_says_how_it_was_chosen",
        f"{_CLI}::test_candidates_may_have_the_form_of_the_input",
    ],
    "A candidate has neither manifest nor sums": [
        f"{_CANDIDATE}::test_a_candidate_has_the_bytes_of_average_while_it_is_evaluated",
        f"{_CANDIDATE}::test_what_an_evaluation_changes_in_a_candidate_is_not_published",
    ],
    "To search a range instead": [f"{_CLI}::test_a_range_is_searched_around_the_best"],
    "A grid comes first": [
        f"{_SEARCH}::test_the_grid_has_equal_ratios_and_both_ends",
        f"{_SEARCH}::test_the_best_is_found_within_one_step_of_the_refinement",
        f"{_SEARCH}::test_any_scores_end_within_the_tries_and_the_range",
        f"{_CANDIDATE}::test_what_nobody_has_changed_is_not_made_again",
        f"{_PYTHON}::test_a_range_is_searched_in_as_many_evaluations_as_said",
    ],
    "Half-lives may be shares": [
        f"{_SEARCHES}::test_any_law_with_a_number_is_tuned",
        f"{_SEARCH}::test_shares_and_windows_are_searched_as_half_lives",
    ],
    "With --profile it is the window": [
        f"{_SEARCHES}::test_any_law_with_a_number_is_tuned",
        f"{_PYTHON}::test_windows_from_python",
    ],
    "EMA_WINDOW takes the place": [f"{_COMMAND}::test_the_last_checkpoint_has_the_variables_of_the_others"],
    "--extrapolate 0 1 searches on a line": [
        "tests/cli/test_tune_extrapolate.py::test_the_best_factor_is_found_and_its_average_published",
        f"{_SEARCH}::test_factors_are_searched_on_a_linear_scale",
        f"{_SEARCH}::test_a_grid_of_factors_has_equal_distances_and_both_ends",
    ],
    "EMA_EXTRAPOLATE takes the place": [f"{_COMMAND}::test_the_last_checkpoint_has_the_variables_of_the_others"],
    "Without a command of your own": ["tests/docs/test_blocks.py::test_a_page_s_commands_print_what_it_shows"],
    "Results and what the command prints": [
        f"{_CLI}::test_it_writes_the_best_average_and_prints_where",
        f"{_COMMAND}::test_a_second_evaluation_is_read_apart_from_the_first",
    ],
    "The same line once more goes on": [
        f"{_CLI}::test_resumed_equals_uninterrupted",
        f"{_CLI}::test_the_results_of_another_evaluation_are_not_taken",
        f"{_CLI}::test_results_are_not_taken_where_the_same_command_means_something_else",
        f"{_KILLED}::test_killed_at_any_change_of_a_file_it_ends_as_if_it_had_not_been",
        f"{_KILLED}::test_killed_while_it_evaluates_only_that_evaluation_is_repeated",
    ],
    "Another line needs another": [
        f"{_CLI}::test_the_results_of_another_evaluation_are_not_taken",
        "tests/tuning/test_journal.py::test_a_journal_without_a_metric_gives_way_to_another_tuning",
    ],
    "Candidates are gone at the end": [
        f"{_CLI}::test_interrupted_it_leaves_no_candidate_and_no_evaluation",
        f"{_KILLED}::test_killed_at_any_change_of_a_file_it_ends_as_if_it_had_not_been",
    ],
    "Of an output in a bucket": [
        "tests/storage/store/test_addresses_everywhere.py::test_a_half_life_is_tuned_from_a_store_into_it"
    ],
    "The manifest of the winner says": [
        f"{_PYTHON}::test_the_manifest_is_that_of_average_and_says_how_it_was_chosen",
        f"{_CLI}::test_it_writes_the_best_average_and_prints_where",
        "tests/hostile/test_what_was_compared.py::test_no_field_switches_off_what_is_compared",
        "tests/report/test_report.py::test_how_a_half_life_was_chosen_is_drawn",
    ],
    "From Python, ema_cli.tune takes": [
        f"{_PYTHON}::test_the_evaluation_may_get_a_state_dict",
        f"{_PYTHON}::test_the_evaluation_is_called_in_the_thread_of_its_caller",
        f"{_PYTHON}::test_what_the_evaluation_raises_ends_the_tuning_and_leaves_nothing",
    ],
}
