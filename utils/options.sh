# shellcheck shell=bash disable=SC2034 # utils/driver.sh reads them
# The options of every recipe, with their defaults. A recipe sources this, changes defaults and adds its own options in the
# same form. Then it sources utils/driver.sh. utils/parse_options.sh explains the marks.

list_options="head seed asr languages compare"  # options that take several words

stage=0                  #: first stage
stop_stage=6             #: last stage; 7 packs each run for other machines into exp/<run>/pack
model=                   #: encoders: the name of a file conf/<model>.yaml
head=parallel            #: heads to train and score, one or more: "parallel cascaded"
seed=0                   #: seeds, one or more: "0 1 2"; each trains its own run
languages=               #: languages to train and score, one or more: "en hi"; empty for all that utt2lang has
feats=dump               #: dump: stage 2 stores the hidden states of the speech encoder;
                         #: online: training computes them, which is slower but needs no disk
nj=2                     #: parallel jobs of stages 1 and 2; cmd.sh decides where they run
ngpu=0                   #: training processes on each machine, one GPU each if there are GPUs; torchrun starts more than one
num_nodes=1              #: training machines, each with --ngpu processes; train_cmd in cmd.sh starts them
endpoint=                #: HOST:PORT of the first training machine; Slurm provides it
corpus=                  #: folder of the corpus, if it is on this machine
models=                  #: folder with the encoders: .pt files of fairseq and OpenAI, or transformers folders
speech_encoder=          #: another speech encoder than that of conf/: folder, file or hub id, or
                         #: s3prl:NAME, s3prl:NAME:CHECKPOINT for an upstream of s3prl
clip=                    #: another CLIP than that of conf/: folder, file or NAME:PRETRAINED
vocabulary=all           #: captions that define the vocabulary: all (data/clip_vocabulary.tsv), or train
                         #: (data/clip_vocabulary_train.tsv)
clip_embeddings=         #: .npz (ids, embeddings) of the images, instead of CLIP's image tower
text_embeddings=         #: .npz (ids, embeddings) of the captions, instead of CLIP's text tower
supervision=image        #: targets of training: image; or text for the supervised topline (tag "supervised")
config=                  #: one more YAML layer on top of conf/
coarse=                  #: run or checkpoint that --head reranker is trained on: a parallel or hybrid head; empty: the
                         #: run of the parallel head with the same tag and seed
rerank=                  #: run or checkpoint of a reranker: stage 4 orders the first eval.top_k candidates again
asr=                     #: recognisers to compare with, one or more: ctc (trained on the captions), pocketsphinx (weak),
                         #: or a folder or hub id of transformers (Whisper, CTC models). Needs the extra asr
conditions=false         #: score all heads and recognisers in noise, in rooms, over the telephone and at other speeds
compare=                 #: experiment folders of earlier runs that --conditions scores, too, with paired tests
noise_dir=               #: noises for --conditions and --augment in MUSAN's layout: noise/, music/, speech/
rir_dir=                 #: impulse responses of rooms for both; without it rooms are simulated
augment=0.0              #: share of the training utterances with noise and rooms, e.g. 0.5; give a --tag, too
checkpoint=              #: checkpoint to score instead of training: a folder or a published .ckpt file
region_files=            #: for fast_vgs: published features of 36 regions, hdf5 or LXMERT's tsv, separated by commas
detector=                #: for fast_vgs with regions frcnn: weights of torchvision's Faster R-CNN
push=                    #: in stage 7: hub repository (owner/name) that receives the pack of one run
tag=                     #: suffix of the experiment folder, to keep runs apart
dry_run=false            #: print all commands, and the Slurm script of stage 2, but run nothing
force=false              #: run stages again although they are up to date; training starts over and
                         #: deletes the earlier weights after its first save
python=$SPEECHCLIP_PYTHON  #: the Python that runs the stages
