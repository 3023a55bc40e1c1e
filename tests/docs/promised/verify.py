"""The page on `verify`, and SECURITY.md: the beginning of each sentence -> its tests."""

_CLAIMS, _COMPARED = "tests/release/test_claims.py", "tests/hostile/test_what_was_compared.py"
_FILES, _CONTENTS = "tests/release/test_verify_files.py", "tests/release/test_verify_contents.py"
_SIGNED, _STORED, _WATCHED = (f"tests/release/test_{name}.py" for name in ("signed", "stored", "watched"))
_RECOMPUTE, _CLOCKS = "tests/release/test_recompute.py", "tests/release/test_clocks.py"

VERIFY = {
    "verified: 5 files, 3 tensors": [
        f"{_FILES}::test_one_bit_of_a_file_in_a_folder",
        f"{_FILES}::test_a_file_that_is_not_listed",
        f"{_FILES}::test_other_hidden_files_are_not_left_alone",
        f"{_FILES}::test_an_empty_folder_is_not_left_alone",
        f"{_CONTENTS}::test_tensors_of_another_kind",
        f"{_CONTENTS}::test_tensors_of_other_names",
        f"{_CONTENTS}::test_values_that_are_not_finite",
        f"{_CONTENTS}::test_metadata_that_say_otherwise",
        "tests/hostile/test_drawn_marks_and_cards.py::test_any_field_of_a_mark",
    ],
    "of a .pt, of Lightning's .ckpt from scratch": [
        f"{_CLAIMS}::test_a_torch_file_holds_only_what_is_written",
        f"{_CLAIMS}::test_bytes_before_and_behind_an_archive",
        "tests/writing/test_lightning_file.py::test_a_class_that_somebody_puts_in_is_a_problem",
        "tests/writing/test_dcp_output.py::test_equal_averages_are_equal_bytes_and_verified",
    ],
    "of what [--like-input]": [
        "tests/writing/test_like_input.py::test_verify_names_classes_unless_the_description_is_compared",
        "tests/writing/test_like_input.py::test_verify_finds_another_description",
    ],
    "all bytes are those of 6 checkpoints averaged anew": [
        f"{_RECOMPUTE}::test_bytes_that_the_checkpoints_do_not_give",
        f"{_RECOMPUTE}::test_a_header_that_the_checkpoints_do_not_give",
        f"{_RECOMPUTE}::test_side_files_that_the_checkpoints_do_not_give",
        f"{_RECOMPUTE}::test_a_manifest_that_the_checkpoints_do_not_give",
        f"{_COMPARED}::test_any_field_of_a_manifest",
        f"{_COMPARED}::test_any_text_in_a_header",
        f"{_COMPARED}::test_any_side_file",
        f"{_COMPARED}::test_no_field_switches_off_what_is_compared",
        "tests/hostile/test_drawn_marks_and_cards.py::test_any_field_of_a_card",
    ],
    "up to 65,536 elements of each tensor": [
        f"{_RECOMPUTE}::test_a_sample_reads_little",
        f"{_CLAIMS}::test_a_sample_compares_the_end_of_an_archive_too",
        "tests/release/test_remarks.py::test_a_sample_compares_them_too",
    ],
    "tensors, and all files that were copied, ...": [
        f"{_CLAIMS}::test_words_of_another_version_are_named_as_not_compared",
        f"{_CLAIMS}::test_a_forgery_is_found_whatever_version_it_names",
        f"{_FILES}::test_the_user_allows_an_edited_card",
    ],
    "not compared: warnings of what lay around": [
        "tests/release/test_remarks.py::test_another_text_is_named_as_not_compared",
        "tests/release/test_remarks.py::test_a_text_that_is_left_out_is_seen",
    ],
    "its clocks are not those that the checkpoints record": [
        f"{_CLOCKS}::test_recorded_clocks_that_were_overruled_are_named_and_strict_fails"
    ],
    "signed by release-key.pub, but for": [f"{_SIGNED}::test_a_file_that_was_signed_alone"],
    "signed by release-key.pub": [
        f"{_SIGNED}::test_files_changed_after_they_were_signed",
        f"{_SIGNED}::test_a_file_that_is_not_listed_is_not_signed_either",
        f"{_SIGNED}::test_files_that_were_signed_too",
        f"{_SIGNED}::test_keys_that_were_changed",
    ],
    "its signature model.sig is not checked": [f"{_SIGNED}::test_nobody_asks_who_signed_it"],
    "of what watch wrote, not compared: how watch rounded": [
        f"{_WATCHED}::test_what_is_all_there_is_averaged_anew",
        f"{_WATCHED}::test_what_is_more_than_rounding_is_a_problem",
        f"{_WATCHED}::test_an_average_that_calls_itself_watched_is_compared",
    ],
    "of what watch wrote, 2 inputs of it": [
        f"{_WATCHED}::test_what_is_gone_is_said_and_not_compared",
        f"{_WATCHED}::test_an_input_that_has_changed_is_a_problem",
        f"{_WATCHED}::test_weights_that_are_not_those_of_the_law_are_a_problem",
        f"{_WATCHED}::test_a_clock_that_is_not_that_of_what_is_left_is_a_problem",
        f"{_WATCHED}::test_numbers_that_do_not_follow_from_the_weights_are_a_problem",
    ],
    "of an average of stored averages": [
        f"{_STORED}::test_weights_that_are_not_those_of_the_fit",
        f"{_STORED}::test_errors_that_are_not_those_of_the_weights",
        f"{_STORED}::test_another_half_life_is_further_off",
        "tests/hostile/test_drawn_stored.py::test_a_header_that_is_another_now",
    ],
    "Somebody else made the release": [
        f"{_COMPARED}::test_no_field_switches_off_what_is_compared",
        f"{_CLAIMS}::test_a_forgery_is_found_whatever_version_it_names",
    ],
    "The clocks are settled anew": [
        f"{_CLOCKS}::test_a_clock_that_the_checkpoint_does_not_give_is_a_problem",
        f"{_CLOCKS}::test_a_clock_that_the_manifest_leaves_out_is_a_problem",
        f"{_CLOCKS}::test_a_distance_that_gives_other_clocks_is_a_problem",
        f"{_CLOCKS}::test_a_length_of_epochs_that_gives_other_clocks_is_a_problem",
    ],
    "which checkpoints entered": ["tests/release/test_remarks.py::test_a_training_that_goes_on_changes_no_release"],
    "an option of the recipe that changes no byte": [f"{_CLAIMS}::test_an_option_that_changes_no_byte_is_followed"],
    "how the text of the manifest is spaced": [f"{_CLAIMS}::test_how_a_manifest_is_spaced_and_ordered_is_free"],
    "the least error that stored averages": [f"{_STORED}::test_errors_that_are_not_those_of_the_weights"],
    "libraries, and the version of the tool": [f"{_CLAIMS}::test_a_forgery_is_found_whatever_version_it_names"],
    "who wrote it, unless": [
        f"{_SIGNED}::test_nobody_asks_who_signed_it",
        f"{_SIGNED}::test_no_signature_although_one_is_demanded",
    ],
}
PROMISED = {
    "No input file runs code": [
        "tests/hostile/test_torch_zip.py::test_planted_programs_never_run",
        "tests/hostile/test_torch_legacy.py::test_hostile_files",
        "tests/hostile/test_whole_module.py::test_hostile_modules",
        "tests/hostile/test_dcp.py::test_hostile_folders",
    ],
    "Nothing outside the output": [
        "tests/hostile/test_safetensors.py::test_hostile_indexes",
        f"{_FILES}::test_names_lead_nowhere_else",
    ],
    "Memory stays bounded": [
        "tests/hostile/test_torch_zip.py::test_endless_damaged_and_exploding_pickles",
        "tests/release/test_bounds.py::test_sums_of_newlines_take_no_memory",
    ],
    "Names from files cannot steer": [
        "tests/hostile/test_text.py::test_every_field_of_a_mark",
        "tests/hostile/test_text.py::test_nothing_is_written_past_that_function",
        "tests/report/test_report.py::test_every_text_of_a_manifest_is_escaped",
    ],
    "An output is complete or not there": [
        "tests/faults/test_kills.py::test_a_kill_at_each_call_leaves_the_old_output_or_the_new"
    ],
    "What is copied into an output": ["tests/writing/test_links.py::test_a_link_that_leads_out_is_refused"],
    "What ema-cli verify --signed-by": [f"{_SIGNED}::test_files_changed_after_they_were_signed"],
    "What ema-cli verify says": [f"{_COMPARED}::test_any_field_of_a_manifest"],
}
