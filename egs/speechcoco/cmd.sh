# shellcheck shell=bash disable=SC2034 # utils/driver.sh and utils/stages.sh read it
# The machines that run the stages. The defaults use this machine.
#
# train_cmd: a command that runs its arguments and waits for them. With Slurm: train_cmd="srun --gres=gpu:1", and for
# --num_nodes 2 --ngpu 4: train_cmd="srun --nodes=2 --ntasks-per-node=1 --gres=gpu:4"
# jobs_launcher: local or slurm; it starts the --nj jobs of stage 2
# slurm_options: options of sbatch, such as "--partition=gpu --time=4:00:00"
train_cmd=
jobs_launcher=local
slurm_options=
