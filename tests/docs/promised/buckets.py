"""The page on buckets: the beginning of each row, paragraph and item -> its tests."""

_READ, _WRITTEN, _KILLED, _ORDER, _UPLOADS, _EVERYWHERE, _LIKE, _EMULATORS, _RCLONE, _WATCHING, _OBJECTS = (
    f"tests/{name}.py"
    for name in (
        "storage/store/test_stores", "storage/staging/test_in_store", "storage/store/test_killed_in_stores",
        "storage/store/test_order_of_objects", "storage/store/test_uploads", "storage/store/test_addresses_everywhere",
        "storage/store/test_like_input_in_stores",
        "libraries/test_stores", "storage/store/test_rclone", "watching/test_stores", "storage/store/test_objects",
    )
)  # fmt: skip

IN_BUCKETS = {
    "a body is cut, or nothing comes": [
        f"{_READ}::test_what_a_network_does_once_is_made_good",
        "tests/storage/store/test_slow_store.py::test_a_slow_store_is_read_and_written",
    ],
    "the store answers 429 or 5xx": [
        f"{_READ}::test_what_a_network_does_once_is_made_good",
        f"{_READ}::test_what_lasts_is_one_error",
        f"{_READ}::test_whatever_happens_it_is_the_average_or_an_error",
    ],
    "an object is replaced or deleted after": [f"{_READ}::test_an_object_that_is_not_the_planned_one_is_one_error"],
    "the store refuses otherwise": [
        f"{_READ}::test_what_cannot_be_read_is_named_with_its_tensor",
        f"{_WRITTEN}::test_a_fault_of_a_write_is_made_good_or_an_error",
    ],
    "credentials are wrong or missing": [
        f"{_READ}::test_a_wrong_secret_is_an_error_with_a_way_on",
        f"{_READ}::test_a_store_that_refuses_an_output_says_what_to_set",
    ],
    "an address is mistyped": ["tests/runs/test_paths.py::test_a_name_that_is_like_the_written_one_is_hinted_at"],
    "an address has a pattern in it": [
        "tests/runs/test_paths.py::test_a_pattern_in_an_address_says_that_no_shell_fills_it_in"
    ],
    "-o takes the address of a bucket": [
        f"{_WRITTEN}::test_what_is_written_to_a_store_is_what_is_written_to_a_disk",
        f"{_WRITTEN}::test_several_averages_are_written_to_a_store",
        f"{_EVERYWHERE}::test_each_form_of_output_is_the_same_there",
        f"{_EVERYWHERE}::test_a_page_about_a_release_goes_where_it_is_wanted",
    ],
    "Files of tensors are sent while": [
        f"{_WRITTEN}::test_tensors_are_sent_and_not_made_on_the_disk",
        f"{_WRITTEN}::test_large_files_go_up_in_parts",
        f"{_UPLOADS}::test_parts_are_what_stores_take",
        "tests/storage/store/test_large_objects.py::test_a_file_over_5_gb_is_written",
        f"{_UPLOADS}::test_memory_is_bounded",
        f"{_UPLOADS}::test_nothing_is_there_before_the_end",
    ],
    "With [--like-input]": [
        f"{_LIKE}::test_what_is_large_is_not_made_on_the_disk",
        f"{_LIKE}::test_what_does_not_lie_in_order_is_made_on_the_disk_first",
    ],
    "In what order the objects appear": [
        f"{_ORDER}::test_while_objects_come_verify_says_that_the_release_is_not_whole"
    ],
    "What does not fit --max-memory": [
        f"{_WRITTEN}::test_too_little_memory_to_send_is_refused_with_a_size_of_shards_that_fits"
    ],
    "A store has no rename, so others": [
        f"{_ORDER}::test_the_manifest_of_a_folder_comes_last_and_goes_first",
        f"{_ORDER}::test_a_single_file_comes_after_its_manifest_and_its_sums",
        f"{_ORDER}::test_of_several_the_last_are_the_manifests_or_the_files",
        f"{_ORDER}::test_while_objects_come_verify_says_that_the_release_is_not_whole",
        f"{_WRITTEN}::test_what_has_no_manifest_yet_is_no_whole_average",
        f"{_WRITTEN}::test_of_several_none_verifies_before_all_are_there",
    ],
    "What is written is checked three times": [
        f"{_UPLOADS}::test_the_store_checks_what_it_gets",
        f"{_WRITTEN}::test_what_others_change_meanwhile_makes_no_mix",
    ],
    "another run writes to the same place": [
        f"{_WRITTEN}::test_a_claim_keeps_a_second_run_out",
        f"{_KILLED}::test_a_run_that_takes_longer_than_its_lease_keeps_its_claim",
        f"{_RCLONE}::test_it_is_read_and_written_and_what_it_does_not_promise_is_said",
    ],
    "something is there already": [
        f"{_WRITTEN}::test_what_is_there_is_replaced_only_by_force",
        f"{_WRITTEN}::test_what_another_run_put_is_not_removed",
    ],
    "Ctrl-C or SIGTERM, and the store answers nothing": [
        "tests/storage/store/test_interrupted_in_stores.py::test_ctrl_c_ends_a_command_at_whatever_request_the_store_falls_silent",
        "tests/storage/store/test_requests.py::test_once_the_program_is_to_end_an_answer_is_not_awaited_for_long",
    ],
    "an error, Ctrl-C or SIGTERM": [
        f"{_WRITTEN}::test_an_interrupt_leaves_nothing",
        f"{_WRITTEN}::test_an_interrupt_while_a_release_is_replaced_says_so",
        f"{_WRITTEN}::test_an_upload_that_fails_leaves_nothing",
        f"{_UPLOADS}::test_the_store_forgets_what_is_aborted",
    ],
    "SIGKILL, or a power cut": [
        f"{_WRITTEN}::test_after_a_kill_at_any_change_there_is_the_old_release_or_the_new_one_or_none",
        f"{_WRITTEN}::test_after_a_kill_at_any_change_the_next_run_leaves_only_its_release",
        f"{_WRITTEN}::test_what_a_killed_run_left_is_named_and_removed_by_the_next",
        f"{_KILLED}::test_the_claim_of_a_killed_run_of_another_machine_is_kept_until_it_is_old",
        f"{_KILLED}::test_a_kill_at_any_change_during_a_take_over_leaves_nothing_to_the_next",
        f"{_KILLED}::test_unfinished_uploads_are_aborted_however_many",
        f"{_WRITTEN}::test_a_run_may_wait_for_a_claim_only_while_its_owner_may_live",
    ],
    "--sign puts its signature before": [
        f"{_KILLED}::test_after_a_kill_at_any_change_a_signature_is_that_of_the_release",
        f"{_EVERYWHERE}::test_a_dry_run_into_a_store_tells_no_room_on_a_disk_that_it_does_not_need",
    ],
    "A store has no rename, so of a release": [f"{_UPLOADS}::test_nothing_is_there_before_the_end"],
    "S3: AWS, SeaweedFS": [
        f"{_UPLOADS}::test_nothing_is_there_before_the_end",
        f"{_WRITTEN}::test_a_claim_whose_renewal_had_no_answer_is_renewed_again",
        f"{_READ}::test_an_object_that_is_not_the_planned_one_is_one_error",
        f"{_EMULATORS}::test_moto_is_read_and_written",
    ],
    "S3 without conditions": [
        f"{_RCLONE}::test_it_is_read_and_written_and_what_it_does_not_promise_is_said",
        f"{_RCLONE}::test_an_object_that_is_replaced_meanwhile_is_an_error",
    ],
    "Google Cloud Storage": [
        f"{_EMULATORS}::test_google_s_emulator_is_read",
        f"{_EMULATORS}::test_what_obstore_sends_to_google_is_written",
    ],
    "Azure": [f"{_EMULATORS}::test_azurite_is_read_and_written"],
    "the Hugging Face Hub": [
        "tests/storage/store/test_hub.py::test_a_revision_that_moves_does_not_mix",
        "tests/storage/store/test_hub.py::test_a_bucket_is_read_and_one_that_changes_meanwhile_is_an_error",
    ],
    "a web server": ["tests/storage/store/test_web.py::test_what_is_replaced_while_it_is_read_is_an_error"],
    "Each look is one listing": [f"{_WATCHING}::test_it_is_as_on_a_disk"],
    "What it goes on with lies beside": [f"{_WATCHING}::test_it_is_as_on_a_disk"],
    "It may be killed at any moment": [
        f"{_WATCHING}::test_killed_at_any_change_of_a_store_it_goes_on_with_the_same_bytes",
        f"{_WATCHING}::test_whatever_happens_while_it_writes_it_goes_on_with_the_same_bytes",
        f"{_WATCHING}::test_a_second_watch_of_one_output_in_a_store_is_refused",
    ],
}
