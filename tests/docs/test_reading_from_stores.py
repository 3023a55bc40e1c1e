"""Each sentence on which stores are read, and on what that takes, has tests that prove it."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT
from tests.docs.test_promises import section, starting

HOW_TO, REFERENCE = DOCS / "how-to" / "buckets.md", DOCS / "reference" / "stores.md"
_STORES, _OBJECTS, _COSTS, _CACHE, _WEB, _HUB, _NAMES, _RCLONE, _STRAIGHT = (
    f"tests/storage/{name}.py"
    for name in (
        "store/test_stores", "store/test_objects", "store/test_what_reads_cost", "store/test_header_cache",
        "store/test_web", "store/test_hub", "test_names", "store/test_rclone", "store/test_straight",
    )
)  # fmt: skip
_AHEAD, _LIBRARIES, _CREDENTIALS = (
    "tests/folding/test_ahead.py", "tests/libraries/test_stores.py", "tests/storage/store/test_credentials.py",
)  # fmt: skip

# The beginning of a sentence -> its tests.
WHICH = {
    "The run or a checkpoint may be a whole": [
        "tests/storage/store/test_addresses_everywhere.py::test_a_whole_bucket_is_a_checkpoint_or_holds_a_run"
    ],
    "What is written needs a name": ["tests/storage/staging/test_in_store.py::test_a_bucket_itself_is_no_output"],
    "--anonymous, in Python": [
        f"{_STORES}::test_what_is_public_is_read_without_a_signature",
        f"{_HUB}::test_a_token_is_sent_and_not_shown",
    ],
    "A web server does not list": [
        f"{_OBJECTS}::test_a_web_server_is_not_listed",
        f"{_WEB}::test_the_list_of_its_shards_names_a_model",
        f"{_WEB}::test_a_list_that_is_none_is_an_error",
    ],
    "It has to send ranges": [f"{_WEB}::test_a_server_that_sends_no_ranges_is_not_read"],
    "A file beside a named one": [f"{_STORES}::test_what_lies_beside_a_signed_file_needs_no_signature"],
    "Without an ETag": [
        f"{_WEB}::test_one_fact_tells_a_file_from_another",
        f"{_WEB}::test_what_is_replaced_while_it_is_read_is_an_error",
        f"{_WEB}::test_a_server_that_tells_no_version_is_not_read",
    ],
    "What follows the question mark": [
        f"{_STORES}::test_signed_addresses_are_read_and_not_shown",
        f"{_STORES}::test_what_a_server_says_is_told_without_what_signs",
        f"{_WEB}::test_workers_know_what_signs_an_address",
    ],
    "An address with a password": [f"{_NAMES}::test_what_is_no_address_is_an_error_without_secrets"],
    "A revision on the Hub": [
        f"{_HUB}::test_a_run_on_the_hub_is_averaged",
        f"{_HUB}::test_a_revision_that_moves_does_not_mix",
    ],
    "Buckets of the Hub": [f"{_HUB}::test_a_bucket_is_read_and_one_that_changes_meanwhile_is_an_error"],
    "AWS_REQUEST_PAYER=true": [f"{_CREDENTIALS}::test_who_asks_may_pay"],
}
TESTED = {
    "Tested are S3": [
        f"{_OBJECTS}::test_an_average_of_a_run_in_a_store_is_that_of_the_run_on_a_disk",
        f"{_STORES}::test_an_average_is_verified_against_a_store",
    ],
    "Of rclone": [f"{_RCLONE}::test_it_is_read_and_written_and_what_it_does_not_promise_is_said"],
    "make test-libraries tests": [
        f"{_LIBRARIES}::test_moto_is_read_and_written",
        f"{_LIBRARIES}::test_azurite_is_read_and_written",
        f"{_LIBRARIES}::test_google_s_emulator_is_read",
    ],
    "No emulator that a registry has": [f"{_LIBRARIES}::test_what_obstore_sends_to_google_is_written"],
    "No service itself was tested": [],
    "A machine's role": [f"{_CREDENTIALS}::test_the_role_of_a_machine_signs"],
}
COSTS = {
    "The first is for 16 MiB": [f"{_AHEAD}::test_requests_grow_and_the_next_is_made_before_all_of_one_has_come"],
    "Of more than 48 checkpoints": [f"{_AHEAD}::test_buffers_for_a_store_fit_and_begin_with_some_sixteen_requests"],
    "One listing": [f"{_COSTS}::test_a_listing_takes_one_request_for_a_thousand_names"],
    "No request for each name": [f"{_OBJECTS}::test_a_store_is_asked_once"],
    "One request for the header": [
        f"{_OBJECTS}::test_a_header_takes_one_request",
        f"{_STORES}::test_inspect_takes_one_request_a_file",
        f"{_CACHE}::test_a_shard_takes_few_requests",
    ],
    "A file of torch.save": [
        f"{_CACHE}::test_a_shard_takes_few_requests",
        "tests/storage/test_ranges.py::test_in_a_store_wider_gaps_cost_less_than_a_request",
    ],
    "Nothing of that again": [
        f"{_CACHE}::test_the_second_command_asks_for_no_header",
        f"{_CACHE}::test_an_object_that_was_replaced_is_read_anew",
        f"{_CACHE}::test_a_range_is_found_under_the_identity_of_its_object",
        f"{_CACHE}::test_the_oldest_makes_room",
    ],
    "So average after inspect": [f"{_CACHE}::test_the_second_command_asks_for_no_header"],
    "--no-cache": [f"{_CACHE}::test_the_second_command_asks_for_no_header"],
    "The outputs are the same": [f"{_CACHE}::test_the_second_command_asks_for_no_header"],
    "Of 100 checkpoints": [f"{_COSTS}::test_a_hundred_checkpoints_of_fifty_shards_take_one_request_a_shard"],
    "The tensors: each byte once": [
        f"{_AHEAD}::test_each_byte_of_the_tensors_comes_once_in_long_requests",
        f"{_AHEAD}::test_buffers_for_a_store_fit_and_begin_with_some_sixteen_requests",
        f"{_OBJECTS}::test_blocks_of_several_checkpoints_are_read_at_once",
    ],
    "Tensors are averaged in the order": [
        f"{_AHEAD}::test_tensors_that_lie_in_another_order_come_in_the_order_of_the_file"
    ],
    "More threads start": [
        "tests/folding/test_pace.py::test_slow_reads_want_more_as_long_as_that_helps",
        "tests/folding/test_pace.py::test_where_processors_are_busy_no_more_is_read_at_once",
        f"{_AHEAD}::test_threads_that_bring_nothing_are_given_up_again",
    ],
    "Less of the processor": [
        f"{_STRAIGHT}::test_only_what_comes_without_tls_and_from_the_server_itself_is_plain",
        f"{_STRAIGHT}::test_a_fold_asks_obstore_for_headers_alone",
        f"{_AHEAD}::test_over_connections_of_ours_two_threads_receive_from_the_beginning",
    ],
    "obstore signs them": [
        f"{_STORES}::test_what_a_network_does_once_is_made_good",
        f"{_STRAIGHT}::test_an_answer_that_is_not_the_one_that_was_asked_for_is_left_to_obstore",
        f"{_STRAIGHT}::test_where_a_body_is_cut_obstore_goes_on",
        f"{_STRAIGHT}::test_after_a_minute_we_ask_again",
    ],
    "Whether the store lets them through": [
        f"{_STRAIGHT}::test_a_store_is_asked_once_whether_it_lets_us_read",
        f"{_STRAIGHT}::test_a_store_that_refuses_us_is_asked_no_more_and_no_request_is_cut_in_pieces",
    ],
    "By default": [
        f"{_AHEAD}::test_buffers_for_a_store_fit_and_begin_with_some_sixteen_requests",
        f"{_AHEAD}::test_with_the_least_memory_one_thread_reads_a_store",
    ],
}


def sentences(page: Path, heading: str) -> list[str]:
    """Return the sentences below a heading that are in no table and no block."""
    text = re.sub(r"```.*?```", "", section(page, heading), flags=re.DOTALL)
    parts = re.split(r"\n\n|\n(?=- )", text)
    plain = [" ".join(part.removeprefix("- ").split()) for part in parts if not part.strip().startswith("|")]
    return [each for part in plain for each in re.split(r"(?<=\.) (?=[A-Z\-]|make |obstore signs)", part) if each]


@pytest.mark.parametrize(
    ("said", "known"),
    [
        (sentences(HOW_TO, "Which stores"), WHICH),
        (sentences(REFERENCE, "What it costs"), COSTS),
        (sentences(REFERENCE, "What is tested"), TESTED),
    ],
    ids=["which stores", "what it costs", "what is tested"],
)
def test_each_sentence_has_its_tests(said: list[str], known: dict[str, list[str]]):
    """A sentence without a test is none that may be said; a test without a sentence is in the wrong list."""
    assert [sentence for sentence in said if not any(starting(sentence, known))] == []
    assert set(known) - {each for sentence in said for each in starting(sentence, known)} == set()


@pytest.mark.parametrize("node", sorted({*chain(*WHICH.values(), *COSTS.values(), *TESTED.values())}))
def test_each_test_is_there(node: str):
    """Under the name that the list has."""
    file, name = node.split("::")
    assert f"\ndef {name}(" in (ROOT / file).read_text("utf-8")
