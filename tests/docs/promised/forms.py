"""The pages on the forms of an output and on adapters: the beginning of each paragraph, item and row -> its tests."""

_LIKE, _DROP, _LIGHTNING, _DCP, _ZERO, _MEGATRON = (
    f"tests/writing/test_{name}.py"
    for name in (
        "like_input", "drop", "lightning_file", "dcp_output", "like_input_zero", "like_input_megatron"
    )
)  # fmt: skip
_TRAINERS, _DEEPSPEED = "tests/trainers/test_like_input.py", "tests/trainers/test_deepspeed_resumes.py"
_COMPOSER, _TORCH = "tests/trainers/test_composer.py", "tests/trainers/test_dcp.py"
_LIBRARIES = "tests/libraries/test_resume.py::test_a_library_goes_on_from_an_average"
_MERGED, _PAIRS, _PEFT, _FACTORS = (
    "tests/formats/adapters/test_merged.py", "tests/formats/adapters/test_pairs.py",
    "tests/trainers/test_peft_products.py", "tests/folding/test_factoring.py",
)  # fmt: skip

GOING_ON = {
    "An average in a file of our own": [
        f"{_LIKE}::test_a_checkpoint_of_lightning_s_is_written_over_again",
        f"{_LIKE}::test_a_folder_of_the_trainer_s_is_written_over_again",
        f"{_LIKE}::test_a_folder_of_distributed_checkpoint_is_written_over_again",
    ],
    "Module.load_from_checkpoint": [f"{_TRAINERS}::test_lightning_loads_an_average_and_goes_on_from_it"],
    "The Hugging Face Trainer takes the second": [f"{_TRAINERS}::test_transformers_resumes_from_an_average"],
    "torch.distributed.checkpoint.load takes": [
        f"{_TRAINERS}::test_shards_of_two_ranks_are_written_over_again",
        f"{_TRAINERS}::test_a_sharded_model_is_loaded_from_averages_and_trained_on",
    ],
    "-o NAME.ckpt writes": [
        f"{_LIGHTNING}::test_it_holds_what_a_module_is_loaded_from",
        f"{_TRAINERS}::test_lightning_loads_a_file_from_scratch",
    ],
    "Hyper-parameters that name classes": [f"{_LIGHTNING}::test_hyper_parameters_that_are_not_plain_are_left_out"],
    "-o dcp:NAME writes": [
        f"{_DCP}::test_torch_loads_the_average",
        f"{_DCP}::test_metadata_are_those_that_torch_writes",
        f"{_TRAINERS}::test_a_sharded_model_is_loaded_from_averages_and_trained_on",
    ],
    "Everything but the weights": [
        f"{_LIKE}::test_a_checkpoint_of_lightning_s_is_written_over_again",
        f"{_ZERO}::test_nothing_else_changes",
        f"{_TRAINERS}::test_timm_loads_an_average_and_resumes_from_it",
    ],
    "Copies of the weights in float32": [
        f"{_LIKE}::test_copies_of_the_weights_in_an_optimizer_are_refused",
        f"{_ZERO}::test_masters_and_the_model_are_the_average",
        f"{_ZERO}::test_without_masters_their_copies_are_named",
        f"{_ZERO}::test_what_tensor_parallel_ranks_have_is_the_average_too",
        f"{_MEGATRON}::test_model_and_float32_weights_are_both_the_average",
        f"{_MEGATRON}::test_weights_in_an_optimizer_s_buffers_are_refused_and_can_be_dropped",
        f"{_DEEPSPEED}::test_deepspeed_goes_on_with_its_optimizer",
    ],
    "The Hugging Face Trainer's checkpoint-N/ around": [
        f"{_ZERO}::test_a_trainer_s_folder_around_it_is_written_over_again",
        f"{_DROP}::test_weights_that_are_there_once_more_are_refused",
        f"{_DEEPSPEED}::test_the_hugging_face_trainer_resumes_under_deepspeed",
    ],
    "--drop optimizer leaves": [
        f"{_DROP}::test_a_file_is_written_without_its_optimizer",
        f"{_DROP}::test_nothing_to_leave_out_is_said",
    ],
    "in a folder, its files": [f"{_DROP}::test_files_of_an_optimizer_s_are_left_out_of_a_folder"],
    "in a file of torch.save": [f"{_DROP}::test_a_file_is_written_without_its_optimizer"],
    "in a folder of torch.distributed.checkpoint": [
        f"{_DROP}::test_a_folder_of_distributed_checkpoint_is_written_without_its_optimizer",
        f"{_DROP}::test_tensors_of_composer_s_shards_are_left_out",
    ],
    "Nothing of it is executed": [
        f"{_DROP}::test_what_cannot_be_left_out_is_refused",
        "tests/formats/test_description.py::test_what_is_loaded_is_all_but_what_was_cut",
    ],
    "Lightning's load_from_checkpoint and": [
        f"{_TRAINERS}::test_a_sharded_model_is_loaded_from_averages_and_trained_on",
        "tests/trainers/test_deepspeed.py::test_deepspeed_loads_an_average_and_trains_on_from_it",
    ],
    "The output carries our mark": [
        f"{_LIKE}::test_a_later_search_passes_it_over_and_a_name_is_refused",
        f"{_LIKE}::test_the_form_is_the_input_s",
        f"{_LIKE}::test_ties_of_the_newest_alone_are_refused",
    ],
    "What a trainer pickled may name classes": [
        f"{_LIKE}::test_verify_names_classes_unless_the_description_is_compared",
        f"{_LIKE}::test_verify_finds_another_description",
        f"{_LIKE}::test_what_names_no_classes_is_verified_as_it_is",
    ],
    "While a training runs": [
        "tests/watching/test_whole.py::test_it_is_what_average_writes_though_each_checkpoint_is_gone"
    ],
    "One checkpoint has weight 1": [f"{_LIKE}::test_one_checkpoint_is_converted_without_a_clock"],
}
# The rows of the table of containers: the newest checkpoint.
CONTAINERS = {
    "one file of torch.save": [
        f"{_LIKE}::test_a_checkpoint_of_lightning_s_is_written_over_again",
        f"{_LIKE}::test_files_of_libraries_are_written_over_again",
        f"{_LIKE}::test_a_name_that_says_another_form_is_refused",
    ],
    "one file of torch's format before 1.6": [f"{_LIKE}::test_a_file_of_the_old_format_can_hold_no_mark"],
    "one safetensors file": [f"{_LIKE}::test_safetensors_keep_their_header"],
    "a folder: Hugging Face's": [
        f"{_LIKE}::test_a_folder_of_the_trainer_s_is_written_over_again",
        f"{_LIKE}::test_a_folder_of_distributed_checkpoint_is_written_over_again",
    ],
    "a folder of DeepSpeed's": [
        f"{_ZERO}::test_masters_and_the_model_are_the_average",
        f"{_ZERO}::test_what_tensor_parallel_ranks_have_is_the_average_too",
        f"{_ZERO}::test_a_trainer_s_folder_around_it_is_written_over_again",
    ],
    "files of ranks": [f"{_LIKE}::test_what_is_read_only_is_refused"],
}
# The rows of the table of those who go on: each is loaded, compared before a step, and trained.
LOADERS = {
    "Composer": [f"{_COMPOSER}::test_training_goes_on_from_an_average"],
    "DeepSpeed": [
        f"{_DEEPSPEED}::test_deepspeed_goes_on_with_its_optimizer",
        f"{_DEEPSPEED}::test_universal_goes_on",
        f"{_DEEPSPEED}::test_tensor_parallel_training_goes_on",
        f"{_DEEPSPEED}::test_automatic_experts_go_on",
    ],
    "fairseq": [_LIBRARIES],
    "Lightning": [f"{_TRAINERS}::test_lightning_loads_an_average_and_goes_on_from_it"],
    "Megatron-Core": [_LIBRARIES],
    "mmcv": [_LIBRARIES],
    "MMEngine": [_LIBRARIES],
    "nanoGPT": [f"{_TRAINERS}::test_nanogpt_resumes_from_an_average"],
    "OLMo-core": [_LIBRARIES],
    "timm": [f"{_TRAINERS}::test_timm_loads_an_average_and_resumes_from_it"],
    "torch": [f"{_TRAINERS}::test_a_sharded_model_is_loaded_from_averages_and_trained_on"],
    "torchtitan": [_LIBRARIES],
    "transformers": [
        f"{_TRAINERS}::test_transformers_resumes_from_an_average",
        f"{_DEEPSPEED}::test_the_hugging_face_trainer_resumes_under_deepspeed",
    ],
    "Ultralytics": [_LIBRARIES],
}
ADAPTERS = {
    "A LoRA adapter adds B A": [
        f"{_MERGED}::test_the_plain_average_names_the_exact_ones",
        "tests/trainers/test_peft.py::test_adapter_averages_to_an_adapter",
    ],
    "The average of the products is a sum": [
        f"{_MERGED}::test_factors_give_the_average_of_the_products",
        f"{_MERGED}::test_the_error_that_is_told_is_that_of_what_is_written",
        f"{_FACTORS}::test_factors_are_the_nearest_of_their_rank",
        f"{_PEFT}::test_factors_of_full_rank_are_the_average",
        f"{_PEFT}::test_a_smaller_rank_is_the_nearest",
        f"{_PEFT}::test_how_far_a_smaller_rank_is_off_is_computed_anew",
    ],
    "The scale (alpha, rsLoRA)": [
        f"{_PAIRS}::test_scale",
        f"{_PEFT}::test_factors_of_full_rank_are_the_average",
    ],
    "What PEFT saves whole": ["tests/trainers/test_peft.py::test_modules_saved_whole"],
    "Several half-lives in one pass": [f"{_MERGED}::test_several_half_lives_have_factors_of_their_own"],
    "It takes about a second": [f"{_MERGED}::test_threads_and_memory_do_not_show"],
    "Each checkpoint counts as the base model": [
        f"{_MERGED}::test_merged_weights_are_rounded_once",
        f"{_MERGED}::test_a_dtype_is_that_of_all_floats",
        f"{_MERGED}::test_another_base_model_is_found",
        f"{_PEFT}::test_merged_model_is_the_base_with_the_average",
        f"{_PEFT}::test_adapters_of_other_ranks_and_scales_are_merged",
    ],
    "BEMA, the [average without a lag]": [
        "tests/formats/adapters/test_merged_bema.py::test_it_is_that_of_the_whole_models"
    ],
    "Where the embeddings are adapted": [f"{_MERGED}::test_tied_weights_change_together"],
    "Where PEFT does more": [
        f"{_PEFT}::test_what_adds_more_than_a_product_is_refused",
        f"{_PAIRS}::test_more_than_a_product_is_refused",
        f"{_MERGED}::test_adapters_that_do_not_fit_are_refused",
    ],
}
