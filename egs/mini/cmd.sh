# shellcheck shell=bash disable=SC2034 # utils/driver.sh and utils/stages.sh read it
# Where the work runs. Empty and local: this machine.
#
# train_cmd: any command that runs its arguments and waits for them. With Slurm: train_cmd="srun --gres=gpu:1", and for
# --num_nodes 2 --ngpu 4: train_cmd="srun --nodes=2 --ntasks-per-node=1 --gres=gpu:4"
# jobs_launcher: local or slurm, what starts the --nj jobs of stage 2; slurm_options: sbatch's, "--partition=gpu --time=4:00:00"
train_cmd=
jobs_launcher=local
slurm_options=
