# shellcheck shell=bash disable=SC2034 # utils/stages.sh reads it
# What training is started through: any command that runs its arguments and waits for them. Empty: this machine, at once.
# With Slurm, for instance: train_cmd="srun --gres=gpu:1 --cpus-per-task=8"
train_cmd=
