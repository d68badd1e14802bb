# shellcheck shell=bash disable=SC2034 # utils/driver.sh reads them
# The options that every recipe has, with their defaults. A recipe sources this, changes defaults and adds options of its
# own in the same form, then sources utils/driver.sh. utils/parse_options.sh tells what the marks mean.

list_options="head seed"  # options that take several words

stage=0                  #: first stage; all later ones up to --stop_stage follow
stop_stage=6             #: last stage; 7 packs each run for other machines, into exp/<model>_<head>/pack
model=                   #: encoders, a name of conf/<model>.yaml
head=parallel            #: heads to train and score, one or several: "parallel cascaded"
seed=0                   #: seeds, one or several: "0 1 2"; each trains a run of its own
feats=dump               #: dump stores the speech encoder's hidden states in stage 2,
                         #: online computes them while training: slower, needs no disk
nj=2                     #: jobs that data preparation and stage 2's features are split over; cmd.sh says where they run
ngpu=0                   #: processes for training, a GPU each where there are any; torchrun starts more than one
num_nodes=1              #: machines for training, each with --ngpu processes; train_cmd in cmd.sh reaches them
endpoint=                #: HOST:PORT at which machines find each other; under Slurm its first machine's
corpus=                  #: folder of the corpus, where the recipe cannot make or find it
models=                  #: folder with the encoders' files: fairseq's and OpenAI's .pt, or transformers folders
speech_encoder=          #: folder, file or hub id of another speech encoder than conf/'s, or
                         #: s3prl:NAME, s3prl:NAME:CHECKPOINT for an upstream of s3prl
clip=                    #: another CLIP than conf/'s: folder, file or NAME:PRETRAINED
vocabulary=all           #: captions counted for data/clip_vocabulary.tsv: all of the corpus, or only train
                         #: (then data/clip_vocabulary_train.tsv)
clip_embeddings=         #: .npz (ids, embeddings) of the images, in place of CLIP's image tower
text_embeddings=         #: .npz (ids, embeddings) of the captions, in place of CLIP's text tower
supervision=image        #: what trains the head: image, or text for the supervised topline (tag "supervised")
config=                  #: one more YAML layer over those of conf/
checkpoint=              #: score this checkpoint in stages 4 and 5, a folder or a published .ckpt; nothing is trained
push=                    #: in stage 7: name on the hub (owner/name) to push the pack of one run to
tag=                     #: suffix of the experiment folder, to keep runs apart
dry_run=false            #: print what would be run, Slurm's script of stage 2 among it, and run nothing
force=false              #: run the stages again that are up to date
python=$SPEECHCLIP_PYTHON  #: the Python that runs the stages
