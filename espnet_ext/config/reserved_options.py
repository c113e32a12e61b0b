"""ESPnet's options that our stages set, and those that a training cannot do with."""

_SEVERAL = (
    *("dist_backend", "dist_init_method", "dist_world_size", "dist_rank", "local_rank"),
    *("dist_master_addr", "dist_master_port", "dist_launcher", "multiprocessing_distributed"),
)
# Options that `espnet-ext train` fills in, whatever the config says, and their source.
SET_BY_TRAIN = {
    "bpemodel": "the tokens of stage 3",
    **dict.fromkeys(_SEVERAL, "the options --ngpu, --processes and --num_nodes"),
    "keep_nbest_models": "recipe: average",
    "multiple_iterator": "recipe: splits",
    "ngpu": "the option --ngpu",
    "output_dir": "the experiment's tag",
    "resume": "always true",
    "token_list": "the tokens of stage 3",
    "train_data_path_and_name_and_type": "recipe: train_set",
    "train_shape_file": "the statistics",
    "valid_data_path_and_name_and_type": "recipe: dev_set",
    "valid_shape_file": "the statistics",
}
# Options that other stages read in the config; after -- they would not see them.
READ_ELSEWHERE = {
    "token_type": "stage 3 makes the tokens",
    "frontend": "stage 2 makes the features",
    "frontend_conf": "stage 2 makes the features",
}
# Options with which ESPnet's trainer does not train the config.
NO_TRAINING = ("config", "collect_stats", "dry_run", "help", "print_config")
