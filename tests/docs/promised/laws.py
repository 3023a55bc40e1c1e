"""The pages on the laws: the beginning of each paragraph, item and row -> its tests."""

_WEIGHTS, _DECAY, _EVENTS, _RELATIVE, _BEMA, _EXTRAPOLATED, _COEFFICIENTS, _LAWS, _TIME, _RECIPE = (
    f"tests/law/test_{name}.py"
    for name in (
        "weights", "decay", "events", "relative", "bema", "extrapolated", "coefficients", "laws", "time", "recipe"
    )
)  # fmt: skip
_MATRIX, _GIVEN, _PLAN = "tests/cli/test_law_matrix.py", "tests/cli/test_given_laws.py", "tests/planning/test_plan.py"
_READ, _MERGED = "tests/planning/test_coefficients.py", "tests/formats/adapters/test_merged_bema.py"
_COMPOSER, _EVERY_LAW = "tests/test_composer.py", f"{_MATRIX}::test_a_law_holds_in_every_way"
_SIGNED, _BEYOND = "tests/folding/test_signed_weights.py", "tests/cli/test_tune_extrapolate.py"

# The rows of the table of laws.
ROWS = {
    "[half-life]": [f"{_WEIGHTS}::test_weights_are_the_unrolled_recurrence", _EVERY_LAW],
    "[relative half-life]": [
        f"{_RELATIVE}::test_after_a_share_of_the_training_the_old_counts_about_half",
        f"{_RELATIVE}::test_from_10000_steps_on_these_are_torchtitans_weights",
        _EVERY_LAW,
    ],
    "[smoothing]": [f"{_WEIGHTS}::test_a_smoothing_is_kept_once_per_update", _EVERY_LAW],
    "[power]": [f"{_WEIGHTS}::test_power_weights_are_integrals_of_the_profile", _EVERY_LAW],
    "[uniform]": [f"{_WEIGHTS}::test_uniform_weights_follow_the_clocks", _EVERY_LAW],
    "[linear]": [f"{_WEIGHTS}::test_decay_weights_emulate_a_falling_learning_rate", _EVERY_LAW],
    "[1-sqrt]": [f"{_WEIGHTS}::test_decay_weights_emulate_a_falling_learning_rate", _EVERY_LAW],
    "[cosine]": [f"{_WEIGHTS}::test_decay_weights_emulate_a_falling_learning_rate", _EVERY_LAW],
    "[inverse-sqrt]": [f"{_WEIGHTS}::test_decay_weights_emulate_a_falling_learning_rate", _EVERY_LAW],
    "[bema]": [f"{_BEMA}::test_weights_are_the_recurrence_of_the_paper", _EVERY_LAW],
    "[extrapolation]": [f"{_EXTRAPOLATED}::test_it_is_the_sum_of_two_averages_by_themselves", _EVERY_LAW],
    "[coefficients]": [f"{_READ}::test_names_and_clocks_are_those_of_the_run", _EVERY_LAW],
}
# The sections of the law before and without those of stored averages, which have a page of tests by themselves.
LAWS = {
    "How training time becomes the weight": [
        "tests/docs/test_facts.py::test_every_law_has_a_row",
        f"{_LAWS}::test_every_profile_is_a_law",
    ],
    "A time is a number and a unit": [
        f"{_TIME}::test_every_form_of_a_time_is_read_exactly",
        f"{_TIME}::test_times_are_exact",
    ],
    "The half-life h is the training time": [f"{_DECAY}::test_after_one_half_life_half_is_left"],
    "This is the law of Composer's EMA": [
        f"{_DECAY}::test_smoothing_is_composers_law",
        f"{_DECAY}::test_half_life_0_keeps_nothing_and_an_infinite_one_everything",
    ],
    "--smoothing 0.99 sets s directly": ["tests/law/test_exponential.py::test_smoothing_is_per_update"],
    "An average after n updates": [f"{_WEIGHTS}::test_weights_are_the_unrolled_recurrence"],
    "So everything is decided by numbers": ["tests/planning/test_gates.py::test_gates_come_before_any_tensor_is_read"],
    "Two numbers describe a set of weights": [f"{_PLAN}::test_effective_number_and_mean_age"],
    "Composer updates its average at regular moments": [
        f"{_EVENTS}::test_missed_events_count",
        f"{_EVENTS}::test_no_event_is_lost_or_counted_twice",
    ],
    "I is 1 in the half-life's unit": [f"{_RECIPE}::test_the_interval_and_its_default"],
    "The average starts as a copy": [f"{_EVENTS}::test_the_first_copy_is_composers"],
    "Where every event has its checkpoint": [f"{_COMPOSER}::test_composers_own_results"],
    "Where checkpoints are denser": [f"{_EVENTS}::test_events_are_a_grid_from_the_beginning"],
    "Where checkpoints are missing": [
        f"{_DECAY}::test_a_missing_checkpoint_keeps_the_half_life_true",
        f"{_WEIGHTS}::test_a_checkpoint_that_is_missing_leaves_the_older_weights_as_they_are",
    ],
    "The first checkpoint stands for": [
        f"{_WEIGHTS}::test_bias_correction_starts_from_zero_as_adam_does",
        f"{_WEIGHTS}::test_the_first_gap_is_the_median_of_the_others",
    ],
    "A half-life can be meaningless": [f"{_WEIGHTS}::test_half_life_0_is_the_newest"],
    "inspect and average warn when": ["tests/planning/test_advice.py::test_the_trap_is_shown"],
    "To have a short half-life with few files": [
        "tests/runs/test_stored_half_lives.py::test_any_half_life_comes_near_the_dense_average"
    ],
    "--profile weighs the training time": [f"{_WEIGHTS}::test_uniform_weights_follow_the_clocks"],
    "Power (--profile power": [
        f"{_WEIGHTS}::test_power_weights_are_integrals_of_the_profile",
        f"{_LAWS}::test_a_power_profile_forgets_its_first_copy",
    ],
    "sigma_rel is the standard deviation": [
        f"{_LAWS}::test_the_exponent_has_the_width_that_is_asked_for",
        f"{_WEIGHTS}::test_the_exponent_of_a_width",
        f"{_WEIGHTS}::test_the_widest_power_profile_is_uniform",
    ],
    "A half-life that is a share of the training so far": [
        f"{_RELATIVE}::test_what_went_before_is_told_by_clocks_and_origin",
        f"{_RELATIVE}::test_the_training_is_counted_from_the_start",
    ],
    "5 % is gamma 12.9": [
        f"{_RELATIVE}::test_from_10000_steps_on_these_are_torchtitans_weights",
        f"{_RELATIVE}::test_early_on_a_share_is_7_percent_off_and_says_so_here",
        "tests/online/test_laws.py::test_a_share_of_the_training_so_far_is_the_weights_of_checkpoints",
    ],
    "Uniform (--profile uniform": [f"{_WEIGHTS}::test_uniform_weights_follow_the_clocks"],
    "Linear, 1-sqrt and cosine": [
        f"{_WEIGHTS}::test_decay_weights_emulate_a_falling_learning_rate",
        f"{_WEIGHTS}::test_linear_weights_of_evenly_spaced_checkpoints",
    ],
    "Inverse-sqrt (--profile inverse-sqrt)": [f"{_WEIGHTS}::test_an_inverse_square_root_leaves_the_rest_to_the_newest"],
    "A window (--window 5000ba)": [
        f"{_PLAN}::test_a_window_keeps_what_lies_in_it_before_the_newest_that_enters",
        f"{_PLAN}::test_a_window_longer_than_the_run_is_a_warning",
        "tests/tuning/test_tune.py::test_windows_from_python",
    ],
    "--profile bema --base MODEL": [f"{_BEMA}::test_weights_are_the_recurrence_of_the_paper"],
    "t is the clock in batches": [
        f"{_BEMA}::test_numbers_are_named_and_written_where_they_are_others",
        f"{_BEMA}::test_the_base_has_a_negative_weight_in_a_long_training",
        f"{_GIVEN}::test_bema_needs_batches_and_no_option_of_it_says_another_unit",
    ],
    "They sum to 1. The base may lie anywhere": [
        f"{_BEMA}::test_weights_are_the_recurrence_of_the_paper",
        f"{_GIVEN}::test_a_checkpoint_is_the_base_at_its_own_clock_by_whatever_path_it_is_named",
        f"{_GIVEN}::test_a_base_without_its_name_is_asked_for",
        f"{_MERGED}::test_it_is_that_of_the_whole_models",
        f"{_MERGED}::test_another_model_is_none_that_their_training_began_with",
    ],
    "--half-life A --extrapolate x": [f"{_EXTRAPOLATED}::test_it_is_the_sum_of_two_averages_by_themselves"],
    "A and B are half-lives": [
        f"{_EXTRAPOLATED}::test_another_average_may_be_named",
        f"{_EXTRAPOLATED}::test_windows_span_the_line_of_consecutive_averages",
        f"{_BEYOND}::test_the_best_factor_is_found_and_its_average_published",
    ],
    "Extra-Merge (arXiv 2605.26484)": [
        f"{_EXTRAPOLATED}::test_windows_span_the_line_of_consecutive_averages",
        f"{_SIGNED}::test_an_overflow_on_the_way_is_mended_and_one_at_the_end_is_told",
    ],
    "--coefficients FILE takes the weights": [
        f"{_READ}::test_json_and_csv_hold_the_same",
        f"{_READ}::test_names_and_clocks_are_those_of_the_run",
        f"{_COEFFICIENTS}::test_a_sum_near_1_is_divided_by",
        f"{_SIGNED}::test_equal_values_stay_to_the_bit_whatever_the_weights",
    ],
    "--any-sum takes them as they are": [
        f"{_COEFFICIENTS}::test_any_sum_is_taken_as_it_is",
        f"{_GIVEN}::test_the_manifest_tells_what_was_given",
        f"{_GIVEN}::test_an_average_is_what_inspect_says_and_is_verified_and_repeated",
    ],
}
# The page on laws with negative weights, and weights that the user gives.
GIVEN = {
    "Laws with negative weights": [
        f"{_GIVEN}::test_an_average_is_what_inspect_says_and_is_verified_and_repeated",
        f"{_SIGNED}::test_each_sum_is_that_of_float64_and_beside_others_to_the_byte_what_it_is_alone",
    ],
    "An EMA that does not lag": [f"{_BEMA}::test_weights_are_the_recurrence_of_the_paper"],
    "A base outside of the run": [
        f"{_GIVEN}::test_a_base_without_its_name_is_asked_for",
        f"{_GIVEN}::test_a_base_of_another_model_is_no_checkpoint_to_leave_out",
    ],
    "Of a LoRA fine-tuning, merge": [
        f"{_MERGED}::test_it_is_that_of_the_whole_models",
        f"{_MERGED}::test_it_may_begin_with_an_adapter_of_the_run",
    ],
    "--extrapolate 0.5 goes on": [
        f"{_EXTRAPOLATED}::test_it_is_the_sum_of_two_averages_by_themselves",
        f"{_BEYOND}::test_the_best_factor_is_found_and_its_average_published",
    ],
    "A name or a clock and a number": [
        f"{_READ}::test_json_and_csv_hold_the_same",
        f"{_GIVEN}::test_a_name_and_a_clock_are_of_one_checkpoint",
    ],
    "Their sum must be 1": [
        f"{_COEFFICIENTS}::test_a_sum_near_1_is_divided_by",
        f"{_COEFFICIENTS}::test_any_sum_is_taken_as_it_is",
    ],
    "From Python:": [f"{_GIVEN}::test_from_python_the_run_is_opened_with_its_base"],
}
