"""Hostile input over all commands: exit code 2, one sentence, no traceback, and nothing that was there is touched.

A case is a command line, what is made wrong before it runs, and a piece of the sentence that it has to end in. What
lies in the case's folder, an earlier run's outputs above all, lies there afterwards, bit for bit, and nothing else.
What a training writes once it has begun is its own, so a fault that shows only in mid-run is no case of this list.
"""

import os

import numpy as np
import pytest
import torch
from support.cli.hostile import (
    TRICKS,
    annotated,
    as_pipe,
    bomb,
    caffe2,
    coco,
    config,
    contents,
    copied,
    cut_short,
    earlier,
    entities,
    exported,
    file,
    first_row,
    folder,
    forbidden,
    image,
    instance,
    listed,
    loop,
    other_buffer,
    pictured,
    pipe,
    postscript,
    program,
    quantization,
    raw_program,
    record,
    replaced,
    safetensors,
    saved,
    stored,
    tar,
    tensor,
    torchscript,
    truncated,
    weights,
    without_manifest,
)
from support.cli.lines import (
    OF_A_SWEEP,
    PHOTO,
    PRETRAIN_ON,
    QUANTIZATION,
    RESUME,
    SWEEP_AGAIN,
    analyze,
    arguments,
    bench,
    convert,
    export,
    export_backbone,
    predict,
    pretrain,
    probe,
    quantize,
    run,
    search,
    sensitivity,
    sweep,
    train,
)
from support.detect.configs import CONFIGS
from support.toy_datasets import toy_names_at

from ssql_det.cli.main import COMMANDS, main

ROOT = CONFIGS.parents[1]
CLASSIFIER = "roi_heads.box_predictor.cls_score.weight"
BAD_YAML, BAD_PTH, BAD_PKL = "{here}/bad.yaml", "{here}/bad.pth", "{here}/bad.pkl"
UNFIT = "error(s) that would stop a training; fix the files named above"
NO_DETECTOR = "this config does not describe a detector"


LINES = {  # the command line itself is what is wrong
    # ---- arguments
    "mistyped command": ("tabels --table 6", "there is no command 'tabels'; did you mean 'tables'?"),
    "command that plays tricks": ("{tricks}", r"there is no command 'a\n\x1b[31merror: b'"),
    "missing option": ("sweep MODEL.WEIGHTS w.pth", "arguments are required: --config-file"),
    "one bit": (sweep(flags="--bits 1"), "weight bits must be 2 to 16, or None for float; got 1"),
    "forty bits": ("demo --bits 40w8a", "must be 2 to 16, or None for float; got 40 in '40w8a'"),
    "no bits": ("demo --bits=", "cannot read bits ''; write FP, 4w4a"),
    "bits of 5000 digits": (f"demo --bits {'9' * 5000}", "cannot read bits '99999999999999999999..."),
    "scheme that is mistyped": (
        sweep(flags="--scheme minmx"),
        "unknown weight quantizer 'minmx'; did you mean 'minmax'? (known: adaround, brecq, ",
    ),
    "scheme that is empty": (
        "demo --scheme=",
        "unknown weight quantizer '' (known: adaround, brecq, brecq-fisher, centred, dorefa, lsq, minmax, mse, qdrop)",
    ),
    "scheme of the other side": (
        predict(flags="--scheme weight=percentile"),
        "'percentile' is no weight quantizer; use one of adaround, brecq, brecq-fisher, centred, dorefa, lsq, minmax, ",
    ),
    "scheme of a part that is none": (
        probe("--scheme weigth=mse"),
        "unknown key 'weigth' in a scheme; did you mean 'weight'? (known: weight, act, norms, placement, ",
    ),
    "scheme that says it twice": (sensitivity(flags="--scheme mse,act=minmax"), "'mse,act=minmax' sets act twice"),
    "scheme of another value": (
        sweep(flags="--scheme act=mse:99"),
        "the exponent of mse must be 1 to 10, as in mse:2.4; got 99",
    ),
    "scheme of a value that is no number": (
        analyze("--scheme act=mse:two"),
        "a name and numbers after colons, as in mse:2.4",
    ),
    "scheme of too many values": (sweep(flags="--scheme weight=minmax:1"), "takes 0 parameter(s), got 1"),
    "scheme of other norms": (sweep(flags="--scheme norms=re-estimate"), "'re-estimate'; did you mean 're-estimated'?"),
    "scheme that plays tricks": (
        sweep(flags="--scheme 'act={tricks}'"),
        r"a quantizer is a name and numbers after colons, as in mse:2.4; got 'a\\n\\x1b[31merror: b'",
    ),
    "scheme of other bits": (
        sweep(flags="--scheme act=mse --bits FP,12"),
        "act=mse supports 2 to 10 bits, not 12",
    ),
    "scheme of other bits, of a probe": (
        probe("--scheme act=mse --bits FP,2w12a"),
        "act=mse supports 2 to 10 bits, not 12",
    ),
    "evaluation in training in a scheme of other bits": (
        train("SSQL_DET.SCHEME act=mse SSQL_DET.EVAL_BITS \"['12w12a']\""),
        "act=mse supports 2 to 10 bits, not 12",
    ),
    "evaluation in training in a scheme that is unknown": (
        train("SSQL_DET.SCHEME minmx"),
        "unknown weight quantizer 'minmx'; did you mean",
    ),
    "kNN in a scheme that is unknown": (
        pretrain("MONITOR.PERIOD 1 MONITOR.SCHEME minmx"),
        "unknown weight quantizer 'minmx'; did you mean",
    ),
    "pretraining in a scheme that is unknown": (
        pretrain("SSQL.SCHEME act=percentil"),
        "unknown activation quantizer 'percentil'; did you mean 'percentile'?",
    ),
    "quantization that is not there": (
        predict(flags="--quantization {here}/no.safetensors"),
        "cannot read a quantization from {here}/no.safetensors: there is no such file",
    ),
    "config of no name": (
        "configs --show pretrain/mimi",
        "no config file pretrain/mimi; did you mean 'pretrain/mini'?",
    ),
    "negative seed": ("demo --seed -1", "argument --seed: '-1' is not a whole number, 0 or more"),
    "network for one size": ("demo --arch timm/vit_tiny_patch16_224 --size 64", "cannot take images of 64 pixels"),
    "0 GPUs": (train(flags="--num-gpus 0"), "argument --num-gpus: '0' is not a whole number, 1 or more"),
    "99 GPUs": (train(flags="--num-gpus 99"), "99 processes are too many"),
    "99 processes": (pretrain(flags="--num-gpus 99"), "OPTIM.BATCH 16 is too small"),
    "key without value": (train("SOLVER.MAX_ITER"), "but 'SOLVER.MAX_ITER' has no value"),
    "option behind keys": (sweep("SEED 1 --bits 4"), "--bits comes after KEY VALUE pairs"),
    "quantization at FP": (quantize(flags="--bits FP,4"), "--bits has FP, which needs no quantization"),
    "quantization of two networks": (
        quantize(flags="--checkpoint {good}/backbone.pth"),
        "quantize needs either --config-file, of a detector, or --checkpoint, of a backbone",
    ),
    "quantization of a detector on crops": (quantize(flags="--data {toy}/crops"), "--data needs --checkpoint, of a"),
    "quantization in a file of something else": (
        quantize(out="{out}/notes.txt"),
        "--out must end in .safetensors, got {out}/notes.txt",
    ),
    "quantization in too few images": (
        quantize(flags="--scheme tune=5"),
        "DATASETS.TRAIN has 30 images, but calibration needs 2, reconstruction 256",
    ),
    "evaluation in training in a scheme that must be learned": (
        train("SSQL_DET.SCHEME weight=brecq"),
        "needs rounding, which is learned for each bit-width: run `ssql-det quantize`",
    ),
    "kNN in a scheme that must be learned": (
        pretrain("MONITOR.PERIOD 1 MONITOR.SCHEME tune=5"),
        "needs tune, which is learned for each bit-width: run `ssql-det quantize`",
    ),
    "demo in a scheme that must be learned": ("demo --scheme weight=qdrop", "needs rounding, which is learned for"),
    "export of two networks": (
        export(flags="--checkpoint {good}/backbone.pth"),
        "export needs either --config-file, of a detector, or --checkpoint, of a backbone",
    ),
    "export of no network": ("export", "export needs either --config-file, of a detector, or --checkpoint, of a"),
    "export in a file of something else": (export(out="{out}/notes.txt"), "--out must end in .onnx, got {out}/notes"),
    "export of a backbone with a detector's keys": (
        export_backbone(flags="SEED 1"),
        "KEY VALUE needs --config-file, of a detector; leave it out",
    ),
    "export of a backbone on images of a folder": (
        export_backbone(flags="--check-folder {toy}"),
        "--check-folder needs --config-file, of a detector; leave it out",
    ),
    "export of a detector in a backbone's size": (export(flags="--size 32"), "--size needs --checkpoint, of a"),
    "export compared on a folder and not": (
        export(flags="--check-images 0 --check-folder {toy}"),
        "--check-folder needs --check-images 1 or more; leave one of the two out",
    ),
    "export whose AP is compared, and nothing else": (
        export(flags="--check-images 0 --evaluate"),
        "--evaluate needs --check-images 1 or more",
    ),
    "export compared on no images": (export(flags="--check-folder {good}"), "there are no images in {good}"),
    "export compared on nothing": (
        export("DATASETS.TEST ()"),
        "DATASETS.TEST is empty; name a data set; to compare on other images, use --check-folder FOLDER; to write ",
    ),
    "export of a part that ONNX does not have": (
        export("MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIPool"),
        "the pooler RoIPool (MODEL.ROI_BOX_HEAD.POOLER_TYPE) cannot be exported; supported are Faster and Mask R-CNN",
    ),
    "export at two bit-widths": (export(flags="--bits 8,4"), "--bits needs one bit-width, as a file has one; got 8,4"),
    "export of more bits than bytes have": (
        export(flags="--bits 16"),
        "16w16a has no integer form: weights and activations need 2 to 8 bits",
    ),
    "export of weights alone": (
        export(flags="--bits 8w"),
        "8w has no integer form: weights and activations need 2 to 8",
    ),
    "export in float in a scheme": (
        export(flags="--scheme weight=mse"),
        "--scheme needs --bits, such as --bits 8; leave it out, or name a bit-width",
    ),
    "export in float calibrated": (export(flags="--calib-images 4"), "--calib-images needs --bits, such as --bits 8;"),
    "export of integers in the published placement": (
        export(flags="--bits 8 --scheme weight=mse"),
        "integers need placement=integer; use --scheme 'weight=mse, placement=integer'",
    ),
    "export of integers of equalized channels": (
        export(flags="--bits 8 --scheme 'placement=integer, equalize=yes'"),
        "equalized channels have no integer form; leave equalize=yes out",
    ),
    "export of integers that must be learned": (
        export(flags="--bits 8 --scheme 'weight=brecq, placement=integer'"),
        "needs rounding, which is learned for each bit-width: run `ssql-det quantize`",
    ),
    "export of integers of nine bits": (
        export(flags="--bits 4 --scheme 'weight=centred, placement=integer' --calib-images 2"),
        "backbone.stem.conv1 (5 such layer(s)): weight=centred has 9-bit integers at 8 bits, which do not fit into "
        "int8; give these layers 7 bits in a --bits-file, or use weight=minmax or mse",
    ),
    "export of integers without images": (
        export("DATASETS.TRAIN ()", "--bits 8 --check-images 0"),
        "the data sets in DATASETS.TRAIN cannot be read",
    ),
    "export with a quantization of the published placement": (
        export(flags="--bits 8 --quantization {good}/sweep/quantization.safetensors"),
        "quantization.safetensors has placement=published, but integers need placement=integer; run `ssql-det "
        "quantize` with --scheme 'placement=integer'",
    ),
    "export with a quantization that is none": (
        export(flags="--bits 8 --quantization {good}/c4.pth"),
        "c4.pth does not hold a quantization; name a file that a sweep or Quantization.save wrote",
    ),
    "export with a quantization of another network": (
        export(flags="--bits 8 --quantization {good}/sweep/quantization.safetensors", of="fpn"),
        "quantization.safetensors",
    ),
    "bench of a size that is none": (
        bench(flags="--size 480"),
        "argument --size: '480' is not a height and a width of 1 to 10000 pixels, such as 480x640",
    ),
    "bench of no rounds": (bench(flags="--rounds 0"), "argument --rounds: '0' is not a whole number, 1 or more"),
    "bench of the published placement": (
        bench(flags="--scheme weight=mse"),
        "integers need placement=integer; use --scheme 'weight=mse, placement=integer'",
    ),
    "bench of floats in a scheme": (
        bench(flags="--bits FP --scheme placement=integer"),
        "--scheme and --quantization need --bits, such as --bits 8; leave them out, or name one",
    ),
    "bench on an image that is not there": (bench(flags="--image {here}/no.jpg"), "{here}/no.jpg cannot be read"),
    "bench of a backbone": (bench("MODEL.WEIGHTS {good}/backbone.pth"), "backbone.pth has only a backbone; train a"),
    "export over a quantization": (
        export(flags="--bits 8 --quantization {good}/q.onnx", out="{good}/q.onnx"),
        "q.onnx is also an input, which would be overwritten",
    ),
    "export of a backbone in integers without images": (
        export_backbone(flags="--bits 8"),
        "--bits of a backbone needs --data, images to calibrate on, or --quantization",
    ),
    "sweep of integers in the published placement": (
        sweep(flags="--engine onnxruntime"),
        "integers need placement=integer; use --scheme 'placement=integer'",
    ),
    "sweep of integers of many bits": (
        sweep(flags="--engine onnxruntime --scheme placement=integer --bits FP,12"),
        "12w12a has no integer form",
    ),
    "sweep of integers with a quantization of the published placement": (
        sweep(flags="--engine onnxruntime --quantization {good}/sweep/quantization.safetensors"),
        "quantization.safetensors has placement=published, but integers need placement=integer; run `ssql-det ",
    ),
    "export of no detections": (export("TEST.DETECTIONS_PER_IMAGE 0"), "TEST.DETECTIONS_PER_IMAGE is 0, so that"),
    "export of a backbone as a detector": (
        export("MODEL.WEIGHTS {good}/backbone.pth"),
        "backbone.pth has only a backbone; train a detector",
    ),
    "budget of another unit": (search(flags="--budget 4GiB"), "a number of MB or GBOPs, such as '4 MB' or '20 GBOPs'"),
    "budget that nothing meets": (search(flags="--budget 1e-9MB"), "the least possible is 0."),
    "no goal": (search(flags=""), "search needs a goal: either --budget, such as"),
    "two goals": (search(flags="--budget 1MB --lose 1"), "search needs a goal: either --budget, such as"),
    "loss below zero": (search(flags="--lose=-0.5"), "--lose must be the AP that may be lost, 0 or more; got -0.5"),
    "loss that is no number": (
        search(flags="--lose nan"),
        "--lose must be the AP that may be lost, 0 or more; got nan",
    ),
    "widths that are none": (search(flags="--budget 1MB --widths 4,99"), "must be 2 to 16, or None for float; got 99"),
    "group that matches nothing": (
        search(flags="--budget 1MB --groups 'backbone.*,roi_heads.*,proposal_generator.*,nek.*'"),
        "no quantization point matches the group 'nek.*'",
    ),
    "groups that leave something out": (
        sensitivity(flags="--groups 'backbone.*'"),
        "roi_heads.res5.0:input is in no group; add a pattern that matches it",
    ),
    "sensitivity to float": (sensitivity(flags="--bits FP"), "--bits FP quantizes nothing"),
    "seeds without end": ("reproduce --seeds 999999", "--seeds must be at most 100, got 999999"),
    "given backbone that is a folder": (
        "reproduce --out {here}/new --checkpoint SSQL={out}",
        "there is no file {out}, which convert-ssql reads",
    ),
    "table that is none": ("tables --table 2 --out {out}/table.md", "there is no published Table 2"),
    "toy data that no disk holds": ("make-toy-data {here}/new --scenes 4000000000", "GB, but its disk has"),
    # ---- outputs
    "table over its rows": (
        "tables --table 6 --rows {out}/rows.jsonl --out {out}/rows.jsonl",
        "rows.jsonl is also an input, which would be overwritten",
    ),
    "bits file over the config": (sensitivity(flags="--out {good}/c4.yaml"), "c4.yaml is also an input, which"),
    "checkpoint over itself": (
        convert(out="{good}/backbone.pth --to timm --force"),
        "backbone.pth is also an input, which would be overwritten",
    ),
    "checkpoint that is there": (convert(out="{out}/out.pth --to timm"), "out.pth exists already; choose another name"),
    "picture over its image": (predict("{out}/000001.png"), "would overwrite an input image"),
    "rows in a file of something else": (probe("--out {out}/notes.txt"), "is not a results file"),
    "analysis in a file": (analyze("--out {out}/notes.txt"), "is a file; name a folder"),
    "analysis of what is not there": (analyze(of=BAD_PTH), "there is no file {here}/bad.pth; check the path"),
    "analysis at one bit": (analyze("--bits 1"), "bits must be 2 to 16"),
    "rows in a folder": (probe("--out {out}"), "cannot write {out}: it is a directory"),
    "table below a file": ("tables --table 6 --out {out}/notes.txt/t", "could not write {out}/notes.txt/t"),
    "sweep in a file": (
        sweep(out="{out}/notes.txt"),
        "cannot write to {out}/notes.txt: File exists; choose another folder",
    ),
    "pretraining in a file": (
        pretrain("OUTPUT_DIR {out}/notes.txt"),
        "cannot write to {out}/notes.txt: File exists; choose another folder",
    ),
    "training in no folder": (train("OUTPUT_DIR ''"), "OUTPUT_DIR is empty; set it to the run's folder"),
    "sweep in no folder": (sweep(out="''"), "OUTPUT_DIR is empty; set it to the run's folder"),
    "pretraining in no folder": (pretrain("OUTPUT_DIR ''"), "OUTPUT_DIR is empty; set it to the run's folder"),
    "reproduction in a file": ("reproduce --out {out}/notes.txt", "notes.txt is a file; name a folder"),
    "toy data in a file": ("make-toy-data {out}/notes.txt", "notes.txt is a file; name a folder"),
    "toy data among other things": ("make-toy-data {out}", "holds other files than toy data"),
    "folder that plays tricks": (
        "check-data {toy} --draw 1 {here}/{tricks}/sheet.png",
        r"there is no folder {here}/a\n\x1b[31merror: b for sheet.png",
    ),
    "training that is there": (train("OUTPUT_DIR {good}/c4"), "already holds a run; add --resume to continue it"),
    "pretraining that is there": (pretrain("OUTPUT_DIR {good}/pretrain"), "already holds a run; add --resume"),
    # ---- configs and their keys
    "config that is not there": (train(of=BAD_YAML), "there is no config file {here}/bad.yaml; check the path"),
    "config that is a checkpoint": (train(of="{good}/c4.pth"), "c4.pth has more than 262144 bytes; is it a config?"),
    "config that is a folder": (pretrain(of="{good}"), "is a directory; name a .yaml file in it"),
    "config of another command": (pretrain(of="{good}/c4.yaml"), "unknown config key INPUT.FORMAT in {good}/c4.yaml"),
    "unknown key": (train("SOLVER.MAX_ITR 5"), "unknown config key SOLVER.MAX_ITR in the command line; did you mean"),
    "word for a number": (
        train("SOLVER.MAX_ITER five"),
        "MAX_ITER must be a whole number, got 'five' in the command line",
    ),
    "batch of nothing": (train("SOLVER.IMS_PER_BATCH 0"), "IMS_PER_BATCH must be 1 to 1048576, got 0"),
    "no iterations": (train("SOLVER.MAX_ITER 0"), "SOLVER.MAX_ITER must be 1 or more, got 0"),
    "iterations without end": (train(f"SOLVER.MAX_ITER 1{'0' * 23}"), "MAX_ITER must be 1 to 4294967296, got 1000000"),
    "images of a batch without end": (
        train(f"SOLVER.IMS_PER_BATCH 1{'0' * 400}"),
        "IMS_PER_BATCH must be 1 to 1048576, got 1000000000000000000",
    ),
    "epochs without end": (pretrain(f"OPTIM.EPOCHS 1{'0' * 23}"), "EPOCHS must be 1 to 4294967296, got 1000000"),
    "queue without end": (pretrain(f"METHOD moco MOCO.QUEUE 1{'0' * 23}"), "QUEUE must be 4294967296 or less, got 1"),
    "rate that is no number": (
        train("SOLVER.BASE_LR nan"),
        "SOLVER.BASE_LR must be a number, got nan in the command line",
    ),
    "rate below zero": (train("SOLVER.BASE_LR -1"), "SOLVER.BASE_LR must be 0 or more, got -1.0"),
    "rate without end": (pretrain("OPTIM.LR inf"), "OPTIM.LR must be 0 to 3.4e+38, got inf"),
    "scheduler that is none": (
        train("MODEL.WEIGHTS {good}/backbone.pth SOLVER.LR_SCHEDULER_NAME Magic"),
        "the solver cannot be built",
    ),
    "steps behind the end": (train("SOLVER.STEPS (3,2,1)"), "the solver cannot be built"),
    "no classes": (train("MODEL.ROI_HEADS.NUM_CLASSES 0"), "NUM_CLASSES must be 1 to 1048576, got 0"),
    "other classes": (sweep("MODEL.ROI_HEADS.NUM_CLASSES 20"), "was trained with: MODEL.ROI_HEADS.NUM_CLASSES"),
    "test size below zero": (sweep("INPUT.MIN_SIZE_TEST -1"), "INPUT.MIN_SIZE_TEST must be 0 to 65536, got -1"),
    "no anchors": (train("MODEL.ANCHOR_GENERATOR.SIZES [[]]"), "SIZES must be a list of one or more numbers, each"),
    "no pooling": (train("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 0"), "POOLER_RESOLUTION must be 1 to 256, got 0"),
    "depth of nineteen": (
        train("MODEL.BACKBONE.NAME build_resnet_backbone MODEL.RESNETS.DEPTH 19"),
        f"{NO_DETECTOR}: unknown 19 (the value of MODEL.RESNETS.DEPTH)",
    ),
    "norm that is none": (train("MODEL.RESNETS.NORM XBN"), NO_DETECTOR),
    "backbone that is none": (train("MODEL.BACKBONE.NAME build_magic"), NO_DETECTOR),
    "head that is none": (sweep("MODEL.ROI_HEADS.NAME Magic"), NO_DETECTOR),
    "nothing to calibrate with": (sweep("DATASETS.TRAIN ()"), "the data sets in DATASETS.TRAIN cannot be read"),
    "nothing to measure on": (search("DATASETS.TEST ()"), "DATASETS.TEST must have one name, got 0"),
    "more to measure on than there is": (
        sensitivity(flags="--selection-images 99999"),
        "DATASETS.TRAIN has 30 images, but calibration needs 2, reconstruction 0 and selection 99999 different ones",
    ),
    "nothing to evaluate on": (
        train("MODEL.WEIGHTS {good}/c4.pth DATASETS.TEST ()", "--eval-only"),
        "DATASETS.TEST is empty; name a data set to evaluate on",
    ),
    "number for a data set": (train("DATASETS.TRAIN (5,)"), "DATASETS.TRAIN must be a list of texts, got (5,)"),
    "data set that is none": (sweep("DATASETS.TEST \"('toy_voc',)\""), "unknown data set 'toy_voc'; did you mean"),
    "looks at bits that are none": (train("SSQL_DET.EVAL_BITS \"['many']\""), "cannot read bits 'many'"),
    "device of another house": (train("MODEL.DEVICE tpu"), "MODEL.DEVICE 'tpu' is not available"),
    "device without values": (pretrain("DEVICE meta"), "DEVICE 'meta' is not available"),
    "network larger than the memory": (
        pretrain("SIMSIAM.DIM 4000000000 SIMSIAM.HIDDEN 10000"),
        "out of memory (",
    ),
    # ---- data
    "data that are not there": ("check-data {here}/no", "there is no folder {here}/no; give the folder"),
    "file for a folder of data": ("check-data {out}/notes.txt", "there is no folder {out}/notes.txt"),
    "crops that are not there": (pretrain("DATA.TRAIN {here}/no"), "'{here}/no' does not exist; name a folder of"),
    "scenes for crops": (pretrain("DATA.TRAIN {toy}"), "holds several data sets; name one of them"),
    "crops larger than the memory": (probe("--size 65536"), "GiB of memory; use a smaller --size"),
    "archive that is not there": (probe("--data cifar10:{here}"), "cifar-10-batches-py does not exist"),
    # ---- checkpoints
    "checkpoint that is not there": (probe(of=BAD_PTH), "there is no file {here}/bad.pth; check the path"),
    "checkpoint that is a folder": (convert("{out}"), "{out} is a directory; name the checkpoint file in it"),
    "no weights": (sweep("MODEL.WEIGHTS ''"), "MODEL.WEIGHTS is empty; name the weights"),
    "backbone for a detector": (
        predict("MODEL.WEIGHTS {good}/backbone.pth" + PHOTO),
        "backbone.pth has only a backbone",
    ),
    "backbone of another architecture": (
        pretrain("BACKBONE resnet18", "--init {good}/backbone.pth"),
        "backbone.pth is a narrow_resnet and does not fit this network",
    ),
    "detector of another kind": (sweep("MODEL.WEIGHTS {good}/fpn.pth"), "one of the two is a C4 detector, the other"),
    "detector that becomes another": (
        convert("{good}/fpn.pth", "{out}/new.pth --to detectron2-c4"),
        "fpn.pth is an FPN detector and cannot become a C4 one",
    ),
    "format that is none": ("inspect {good}/backbone.pth --from mocco", "there is no format 'mocco'; did you mean"),
    "quantization of another network": (
        predict(
            "MODEL.WEIGHTS {good}/fpn.pth" + PHOTO,
            f"--config-file {{good}}/fpn.yaml --quantization {{good}}/sweep/{QUANTIZATION}",
        ),
        f"{QUANTIZATION} was calibrated on another model: backbone.fpn_lateral2.weight is missing in the file",
    ),
    "quantization of another scope": (
        predict(flags=f"--scope backbone --quantization {{good}}/sweep/{QUANTIZATION}"),
        f"{QUANTIZATION} has other points: proposal_generator.rpn_head.anchor_deltas:input is quantized in the file",
    ),
    "quantization of another scheme": (
        predict(flags=f"--scheme act=mse --quantization {{good}}/sweep/{QUANTIZATION}"),
        f"{QUANTIZATION} has scheme minmax, not act=mse; calibrate again with this scheme",
    ),
    "checkpoint for a quantization": (
        predict(flags="--quantization {good}/backbone.pth"),
        "backbone.pth does not hold a quantization; name a file that a sweep or Quantization.save wrote",
    ),
    "rows of no data set": (
        "tables --table 6 --dataset toy_voc",
        "no row has the dataset 'toy_voc'; did you mean 'toy_voc_2007_",
    ),
    "rows that are none": ("tables --table 6 --rows {good}/c4.yaml", "c4.yaml holds no result row"),
    "report of what are no rows": ("report {good}/c4.yaml --out {out}/a.html", "c4.yaml holds no result row"),
    "report that is no page": ("report {good}/sweep --out {out}/a.pdf", "--out {out}/a.pdf must end in .html"),
    "report below a file": ("report {good}/sweep --out {out}/notes.txt/a.html", "could not write {out}/notes.txt/a"),
}
FILES = {  # something that lies in the case's folder is
    # ---- configs
    "config that is a loop of links": (pretrain(of=BAD_YAML), loop("bad.yaml"), "there is no config file {here}/bad"),
    "config that may not be read": (pretrain(of=BAD_YAML), forbidden("bad.yaml"), "Permission denied: {here}/bad.yaml"),
    "list for a config": (train(of=BAD_YAML), file("bad.yaml", "- SEED\n- 1"), "bad.yaml holds a list; it must hold"),
    "tabs": (train(of=BAD_YAML), file("bad.yaml", "SEED:\n\t1"), "bad.yaml is not valid YAML: while scanning"),
    "config that is no text": (train(of=BAD_YAML), file("bad.yaml", b"\xff\xfe\0"), "bad.yaml is not valid YAML"),
    "Python object": (
        train(of=BAD_YAML),
        file("bad.yaml", "SEED: !!python/object/apply:os.system ['touch {here}/CANARY']"),
        "bad.yaml has a value of YAML's type python/object/apply:os.system",
    ),
    "Python expression": (
        train(of=BAD_YAML),
        config("SEED: __import__('os').system('touch {here}/CANARY')"),
        "SEED must be a whole number, got",
    ),
    "circle of bases": (train(of=BAD_YAML), file("bad.yaml", "_BASE_: bad.yaml"), "bad.yaml inherits from itself"),
    "base that is gone": (
        train(of=BAD_YAML),
        file("bad.yaml", "_BASE_: no.yaml"),
        "no.yaml, which _BASE_ in {here}",
    ),
    "mapping of itself": (
        train(of=BAD_YAML),
        file("bad.yaml", b"SEED: &a {a: *a}"),
        "bad.yaml contains itself; write it out without aliases",
    ),
    "bomb of aliases": (
        pretrain(of=BAD_YAML),
        file("bad.yaml", f"SEED: {bomb('[&a{1} {0}, *a{1}]')}"),
        "bad.yaml has more than 10000 keys or values; is it a config?",
    ),
    "home of nobody": (  # a file's own name
        train(of="~nobody.yaml"),
        file("~nobody.yaml", "_BASE_: {good}/c4.yaml\nSEED: 5000000000"),
        "SEED must be 4294967295 or less, got 5000000000 in ~nobody.yaml",
    ),
    "brackets without end": (
        pretrain(of=BAD_YAML),
        file("bad.yaml", "[" * 2000),
        "bad.yaml is nested too deeply; write it out flat",
    ),
    "key that plays tricks": (
        train(of=BAD_YAML),
        config('"a\\n\\e[31m": 1'),
        r"unknown config key a\n\x1b[31m in {here}",
    ),
    # ---- data sets
    "empty folder": ("check-data {here}/bad", folder("bad"), "has no folder VOC2007, VOC2012 or coco in it"),
    "instances that are a folder": ("check-data {toy} --dataset {here}/bad.json", folder("bad.json"), UNFIT),
    "instances cut short": (sweep(of="fpn"), coco('{"images": [{"id": 1'), "is not valid JSON"),
    "list of instances": (sweep(of="fpn"), coco("[]"), "has no list 'images'"),
    "JSON nested without end": ("check-data {data}", coco("[" * 99999), UNFIT),
    "no categories": (sweep(of="fpn"), coco(lambda found: found.pop("categories")), "has no list 'categories'"),
    "unknown category": (sweep(of="fpn"), coco(instance(category_id=77)), "is of category 77, which is not among its"),
    "word for a width": (
        train(of="{good}/fpn.yaml"),
        coco(lambda found: found["images"][0].update(width="wide")),
        "instances_train2017.json: image 1 lacks a file_name, or a width and height of 1 or more",
    ),
    "unknown image": ("check-data {data}", coco(instance(image_id=777)), UNFIT),
    "box of NaN": ("check-data {data}", coco(instance(bbox=[float("nan"), 1, 2, 3])), UNFIT),
    "box of no area": ("check-data {data}", coco(instance(bbox=[1, 1, 0, 0])), UNFIT),
    "box below zero": ("check-data {data}", coco(instance(bbox=[9, 9, -5, -5])), UNFIT),
    "half a corner": ("check-data {data}", coco(instance(segmentation=[[1, 2, 3, 4, 5, 6, 7]])), UNFIT),
    "mask larger than any": (
        sweep(of="fpn"),
        coco(instance(segmentation={"size": [10**6, 10**6], "counts": [10**12]})),
        "has an RLE mask of size [1000000, 1000000], but the image has height and width [",
    ),
    "image file that plays tricks": (
        "check-data {data}",
        coco(lambda found: found["images"][0].update(file_name=TRICKS)),
        UNFIT,
    ),
    "XML cut short": (sweep(), annotated("</size>.*", ""), "000001.xml is not a valid VOC annotation"),
    "XML without size": (sweep(), annotated("<size>.*</size>", ""), "<annotation> has no <size/height>"),
    "XML of another class": (sweep(), annotated("<name>.*?<", "<name>zebra<"), "class 'zebra' is not in the data set"),
    "XML with a corner of NaN": (
        sweep(),
        annotated("<xmin>.*?<", "<xmin>nan<"),
        "000001.xml is not a valid VOC annotation: the box of a ",
    ),
    "bomb of entities": (
        sweep(),
        annotated(".*", f"<!DOCTYPE a [<!ENTITY x0 'x'>{entities(40)}]><a>&x39;</a>"),
        "000001.xml is not a valid VOC annotation",
    ),
    "list of nothing": (sweep(), listed(b""), "Dataset 'toy_voc_2007_trainval' is empty!"),
    "list that is no text": (
        sweep(),
        listed(b"\xff\xfe\0"),
        "the data sets in DATASETS.TRAIN cannot be read: 'utf-8' codec",
    ),
    "list that plays tricks": ("check-data {data}", listed(b"a\x1b[31mb"), UNFIT),
    "list of what is not there": (
        sweep(),
        listed(b"999999"),
        "no annotations at {data}/VOC2007/Annotations/999999.xml",
    ),
    # ---- images
    "images that are missing": (sweep(), pictured(os.unlink), ".jpg is missing or not a regular file"),
    "images cut short": (sweep(), pictured(lambda path: os.truncate(path, 300)), "cannot be decoded: "),
    "images that are pipes": (sweep(), pictured(as_pipe), ".jpg is missing or not a regular file"),
    "images that a worker process cannot read": (
        train("MODEL.WEIGHTS {good}/c4.pth DATALOADER.NUM_WORKERS 1", "--eval-only"),
        pictured(lambda path: os.truncate(path, 900)),
        "a test image cannot be read: the image {data}/VOC2007/JPEGImages/",
    ),
    "images of no bytes": ("check-data {data}", pictured(lambda path: os.truncate(path, 0)), UNFIT),
    "text for an image": (predict("{here}/a.jpg"), file("a.jpg", "a text"), "{here}/a.jpg cannot be read: "),
    "PostScript for an image": (predict("{here}/a.jpg"), postscript("a.jpg"), "{here}/a.jpg cannot be read: "),
    "image of one column": (predict("{here}/a.png"), image("a.png", 1, 9000), "{here}/a.png cannot be read: "),
    "image that is a folder": (predict("{here}/a.jpg"), folder("a.jpg"), "there are no images in {here}/a.jpg"),
    "image whose name plays tricks": (
        predict("{here}/{tricks}.png"),
        file("{tricks}.png", "a text"),
        r"{here}/a\n\x1b[31merror: b.png cannot be read: ",
    ),
    "list of no images": (
        pretrain("DATA.TRAIN {here}/l"),
        file("l", "a.png"),
        "{here}/l, line 1: there is no file a.png",
    ),
    # ---- checkpoints
    "checkpoint that is a loop of links": (f"inspect {BAD_PTH}", loop("bad.pth"), "there is no file {here}/bad.pth"),
    "checkpoint of no bytes": (convert(BAD_PTH), file("bad.pth"), "is not a readable checkpoint: the file is empty"),
    "checkpoint of noise": (f"inspect {BAD_PTH}", file("bad.pth", bytes(range(255, 0, -1))), "damaged or cut short"),
    "checkpoint cut short": (sweep(f"MODEL.WEIGHTS {BAD_PTH}"), cut_short, "damaged or cut short, or another format"),
    "pickle that runs a command": (
        convert(BAD_PKL),
        raw_program,
        "bad.pkl is refused: it calls 'posix.system'",
    ),
    "checkpoint that runs a command": (
        pretrain(flags=f"--init {BAD_PTH}"),
        program,
        "bad.pth is refused: it calls 'posix.system'",
    ),
    "TorchScript": (train(f"MODEL.WEIGHTS {BAD_PTH}"), torchscript, "bad.pth is refused: it is a TorchScript program"),
    "tar archive": (f"inspect {BAD_PTH}", tar, "bad.pth is not a readable checkpoint"),
    "npz archive": (
        convert("{here}/bad.npz"),
        lambda place: np.savez(place.here / "bad.npz", a=1),
        "a zip archive that torch.save did not write",
    ),
    "no dict": (probe(of=BAD_PTH), stored([1, 2]), "there are no tensors in it under the usual names"),
    "weights of no network": (convert(BAD_PTH), stored({"model": {"a": torch.ones(1)}}), "no ResNet is found in it"),
    "weights of NaN": (
        sweep(f"MODEL.WEIGHTS {BAD_PTH}"),
        tensor(CLASSIFIER, lambda weight: weight * float("nan")),
        f"{CLASSIFIER} has NaN or infinite values",
    ),
    "weights of another shape": (
        sweep(f"MODEL.WEIGHTS {BAD_PTH}"),
        tensor(CLASSIFIER, lambda weight: weight[:5]),
        f"{CLASSIFIER} is of shape [11, 192], in the checkpoint [5, 192]",
    ),
    "weights that are missing": (
        sensitivity(f"MODEL.WEIGHTS {BAD_PTH}"),
        weights(lambda content: content["model"].pop(CLASSIFIER)),
        f"{CLASSIFIER} is not in the checkpoint",
    ),
    "weights whose name plays tricks": (
        sweep(f"MODEL.WEIGHTS {BAD_PTH}"),
        weights(lambda content: content["model"].update({TRICKS: torch.zeros(1)})),
        r"a\n\x1b[31merror: b",
    ),
    "description of another network": (
        sweep(f"MODEL.WEIGHTS {BAD_PTH}"),
        weights(lambda content: content["ssql_det"].update(arch="resnet50")),
        "its metadata is invalid",
    ),
    "safetensors of a lying header": (
        convert("{here}/bad.safetensors"),
        safetensors({"conv1.weight": {"dtype": "F32", "shape": [24, 3, 7, 7], "data_offsets": [0, 14112]}}),
        "bad.safetensors is not a readable safetensors file",
    ),
    "Caffe2 of other names": (convert(BAD_PKL), caffe2(magic_w=np.zeros(3)), "its tensors are magic_w"),
    # ---- exported detectors
    "detector of noise": (run(), file("bad.onnx", bytes(range(255, 0, -1))), "bad.onnx is not an ONNX file that onnx"),
    "detector of no bytes": (run(), file("bad.onnx"), "bad.onnx is not an ONNX file that onnxruntime"),
    "detector cut short": (run(), exported(lambda content: content[:500]), "or is damaged or cut short"),
    "detector of others": (run(), exported(metadata=None), "bad.onnx was not written by `ssql-det export`"),
    "detector of torn metadata": (run(), exported(metadata='{"format": 1'), "bad.onnx is damaged: Expecting"),
    "detector whose metadata play tricks": (
        run(),
        exported(metadata='{"format": 1, "kind": "a\\n\\u001b[31merror: b"}'),
        r"kind must be detector or backbone, got 'a\n\x1b[31merror: b'",
    ),
    "detector of the future": (run(), exported(metadata='{"format": 2}'), "made by a newer ssql_det; upgrade this one"),
    "detector that is a folder": (run(), folder("bad.onnx"), "bad.onnx is a directory, not a file"),
    "export over its checkpoint": (
        export("MODEL.WEIGHTS {here}/bad.onnx", out="{here}/bad.onnx"),
        copied("bad.onnx"),
        "bad.onnx is also an input, which would be overwritten; name another output file",
    ),
    "export over a folder": (export(out="{here}/bad.onnx"), folder("bad.onnx"), "bad.onnx is a directory, not a file"),
    "bench into rows of something else": (
        bench(out="{here}"),
        file("bench.jsonl", b'{"runtime": "torch"}\n'),
        "bench.jsonl has other lines than rows of a bench; move it away, or choose another OUTPUT_DIR",
    ),
    "export whose report is a folder": (
        export(out="{here}/bad.onnx"),
        folder("bad.check.json"),
        "bad.check.json is a directory, not a file",
    ),
    "export without test data": (
        export(),
        without_manifest(),
        "or set DETECTRON2_DATASETS to the folder that has them; to compare on other images, use --check-folder FOLDER;"
        " to write the file without a comparison, --check-images 0",
    ),
    "export whose AP is compared without test data": (
        export(flags="--check-folder {toy}/VOC2007/JPEGImages --check-images 1 --evaluate"),
        without_manifest(),
        "there are no toy data in {data}",
    ),
    "export compared on images cut short": (
        export(),
        pictured(lambda path: os.truncate(path, 300)),
        "cannot be read: the image {data}/VOC2007/JPEGImages/",
    ),
    # ---- what earlier runs left
    "training in another config": (RESUME + " SOLVER.BASE_LR 7", earlier("c4"), "has SOLVER.BASE_LR 0.005 (now 7.0)"),
    "tag of what is gone": (RESUME, earlier("c4", replaced("last_checkpoint", b"no.pth")), "no file {here}/run/no.pth"),
    "tag that is a pipe": (
        RESUME,
        earlier("c4", lambda run: as_pipe(run / "last_checkpoint")),
        "{here}/run/last_checkpoint is a pipe, a socket or a device, not a file",
    ),
    "tag that is long": (
        RESUME,
        earlier("c4", replaced("last_checkpoint", b"a/" * 9999)),
        "in the same folder, got 'a/a/",
    ),
    "tag that is no text": (RESUME, earlier("c4", replaced("last_checkpoint", b"\xff\n\x1b")), "no file {here}/run/"),
    "tag that leads outside": (
        RESUME,
        earlier("c4", replaced("last_checkpoint", b"../../../../../../etc/passwd")),
        "last_checkpoint must have the name of a checkpoint in the same folder, got '../../../../../../etc/passwd'",
    ),
    "checkpoint without generators": (
        RESUME,
        earlier("c4", saved("model_final.pth", lambda content: content.pop("rng"))),
        "model_final.pth cannot be resumed from: it has no rng",
    ),
    "checkpoint of other generators": (
        RESUME,
        earlier("c4", saved("model_final.pth", lambda content: content["rng"][0].update(python=5))),
        "model_final.pth does not fit this config",
    ),
    "checkpoint of another momentum": (
        RESUME,
        earlier("c4", saved("model_final.pth", other_buffer)),
        "its optimizer state has a momentum_buffer that does not fit a parameter of shape [24, 3, 7, 7]",
    ),
    "checkpoint without momentum": (
        RESUME,
        earlier("c4", saved("model_final.pth", lambda found: found["optimizer"]["param_groups"][0].pop("momentum"))),
        "its optimizer state has no number for momentum",
    ),
    "checkpoint of another schedule": (
        RESUME,
        earlier("c4", saved("model_final.pth", lambda content: content["scheduler"].update(last_epoch="five"))),
        "the state of its scheduler is not the one that this config has at iteration 0",
    ),
    "pretraining's checkpoint of another momentum": (
        PRETRAIN_ON,
        earlier("pretrain", saved("checkpoint.pth", lambda content: other_buffer(content["resume"]))),
        "its optimizer state has a momentum_buffer that does not fit a parameter of shape [24, 3, 7, 7]",
    ),
    "checkpoint of NaN": (
        RESUME,
        earlier("c4", saved("model_final.pth", lambda content: content["model"][CLASSIFIER].fill_(float("nan")))),
        f"model_final.pth does not fit this config ({CLASSIFIER} has NaN or infinite values)",
    ),
    "checkpoint behind the end": (
        PRETRAIN_ON,
        earlier("pretrain", saved("checkpoint.pth", lambda content: content["resume"].update(steps=999))),
        "cannot be resumed from: it is at step 999 of 3",
    ),
    "config of a run that is gone": (
        PRETRAIN_ON,
        earlier("pretrain", lambda run: (run / "config.yaml").unlink()),
        "/run has checkpoint.pth but no config.yaml: it is no run that can be resumed",
    ),
    "rows of something else": (
        SWEEP_AGAIN,
        earlier("sweep", replaced("results.jsonl", b'{"a": 1}\n')),
        "results.jsonl, line 1 is not a result row",
    ),
    "row of another kind": (
        SWEEP_AGAIN,
        earlier("sweep", first_row(lambda row: row.update(metrics=5))),
        "results.jsonl, line 1 is a result row with an invalid metrics",
    ),
    "row without metrics": (
        SWEEP_AGAIN,
        earlier("sweep", first_row(lambda row: row.update(metrics={}))),
        "the row of FP in {here}/run/results.jsonl has no bbox/AP; delete that line to evaluate again",
    ),
    "row of other weights": (
        SWEEP_AGAIN,
        earlier("sweep", first_row(lambda row: row.update(checkpoint_hash="0"))),
        "the row of FP in {here}/run/results.jsonl has weights' sha256 '0' (now ",
    ),
    "row of the future": (
        "tables --table 6 --rows {here}/run/results.jsonl",
        earlier("sweep", first_row(lambda row: row.update(schema=99))),
        "line 1 has schema 99, but this version reads up to 2",
    ),
    "row of schema 1 whose calibration is none": (
        SWEEP_AGAIN,
        earlier("sweep", first_row(lambda row: row.update(schema=1, calibration="many images"))),
        "results.jsonl, line 1 has schema 1 and cannot be converted: its calibration is 'many images'",
    ),
    "quantization of other weights": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", quantization(model=lambda found: found.update(digest=""))),
        f"{QUANTIZATION} was calibrated on other weights of this model; calibrate again with these",
    ),
    "quantization of other weights, of a sweep": (
        sweep(flags="--bits FP,4", out="{here}/run"),
        earlier("sweep", quantization(model=lambda found: found.update(digest=""))),
        f"{QUANTIZATION} was calibrated on other weights of this model; calibrate again with these",
    ),
    "quantization upside down": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", quantization(lambda found: next(iter(found.values())).copy_(torch.tensor([9.0, -9.0])))),
        f"{QUANTIZATION} is damaged (",
    ),
    "quantization with another range": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", quantization(lambda found: next(iter(found.values())).mul_(2), hash_stays=True)),
        f"{QUANTIZATION} is damaged (its content is not the one that was saved); calibrate again",
    ),
    "quantization of NaN": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", quantization(lambda found: next(iter(found.values())).fill_(float("nan")))),
        f"{QUANTIZATION} is damaged (",
    ),
    "quantization of another shape": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", quantization(lambda found: found.update({next(iter(found)): torch.ones(2, 2)}))),
        f"{QUANTIZATION} is damaged (",
    ),
    "quantization of half the points": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", quantization(points=lambda found: found.pop())),
        f"{QUANTIZATION} has other points: ",
    ),
    "quantization whose tensors are gone": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", quantization(lambda found: found.pop(next(iter(found))))),
        "during calibration",
    ),
    "quantization of another calibration": (
        sweep(flags="--bits FP,4", out="{here}/run"),
        earlier("sweep", quantization(calibration=lambda found: found.update(images=9))),
        f"{QUANTIZATION} was calibrated on 9 images of toy_voc_2007_trainval, seed 0, not on 2 images of toy_voc_2007_",
    ),
    "quantization of more tensors": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", quantization(lambda found: found.update({TRICKS: torch.ones(2)}))),
        f"{QUANTIZATION} is damaged (",
    ),
    "quantization of norms of no layer": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", quantization(lambda found: found.update({"8w8a/norms.magic.running_mean": torch.ones(2)}))),
        f"{QUANTIZATION} is damaged (",
    ),
    "quantization of a scheme from elsewhere": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", quantization(scheme="weight=magic")),
        f"{QUANTIZATION} has an unsupported scheme: unknown weight quantizer 'magic'",
    ),
    "quantization of the future": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", quantization(version="99")),
        f"{QUANTIZATION} has version 99, this ssql_det reads up to 3; update ssql_det",
    ),
    "quantization that plays tricks": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", quantization(version=TRICKS)),
        r"has version a\n\x1b[31merror: b, this ssql_det",
    ),
    "quantization without points": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", quantization(points="5")),
        f"{QUANTIZATION} is damaged (",
    ),
    "quantization whose points are nested without end": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", quantization(points="[" * 99999)),
        f"{QUANTIZATION} is damaged (",
    ),
    "quantization of something else": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", quantization(format="pt")),
        f"{QUANTIZATION} does not hold a quantization; name a file that a sweep or Quantization.save wrote",
    ),
    "quantization cut short": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", truncated(QUANTIZATION, -4)),
        f"{QUANTIZATION} is not a readable safetensors file: ",
    ),
    "quantization cut short in its header": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", truncated(QUANTIZATION, 500)),
        f"{QUANTIZATION} does not hold a quantization; name a file",
    ),
    "quantization of no bytes": (
        predict(flags=OF_A_SWEEP),
        earlier("sweep", truncated(QUANTIZATION, 0)),
        f"{QUANTIZATION} does not hold a quantization; name a file",
    ),
    "quantization that is a folder": (
        predict(flags="--quantization {here}/bad.safetensors"),
        folder("bad.safetensors"),
        "bad.safetensors does not hold a quantization; name a file",
    ),
    "quantization cut short, of a sweep": (
        sweep(flags="--bits FP,4", out="{here}/run"),
        earlier("sweep", truncated(QUANTIZATION, -4)),
        f"{QUANTIZATION} is not a readable safetensors file: ",
    ),
    "plan of a sweep that is gone": (
        SWEEP_AGAIN,
        earlier("sweep", lambda run: (run / "sweep.json").unlink()),
        "results.jsonl belongs to a sweep whose sweep.json is missing; choose another OUTPUT_DIR",
    ),
    "plan of a sweep that is a pipe": (
        SWEEP_AGAIN,
        earlier("sweep", lambda run: as_pipe(run / "sweep.json")),
        "sweep.json is a pipe, a socket or a device, not a file",
    ),
    "damaged plan of a sweep": (
        SWEEP_AGAIN,
        earlier("sweep", replaced("sweep.json", b'{"a"')),
        "sweep.json is damaged",
    ),
    "plan of a sweep without end": (
        SWEEP_AGAIN,
        earlier("sweep", replaced("sweep.json", b"[" * 99999)),
        "sweep.json is damaged",
    ),
    "other plan of a sweep": (
        SWEEP_AGAIN,
        earlier("sweep", record("sweep.json", lambda found: found.update({TRICKS: 1}))),
        r"has a\n\x1b[31merror: b 1 (now None); choose another OUTPUT_DIR",
    ),
    "bits file cut short": (sweep(flags="--bits-file {here}/b.json"), file("b.json", b'{"a'), "b.json is not JSON"),
    "bits file without end": (sweep(flags="--bits-file {here}/b.json"), file("b.json", b"[" * 99999), "is not JSON"),
    "bits file of numbers": (sweep(flags="--bits-file {here}/b.json"), file("b.json", b'{"*": 8}'), "bits by pattern"),
    "bits file of no module": (
        sweep(flags="--bits-file {here}/b.json"),
        file("b.json", b'{"magic": "8w8a"}'),
        "no quantization point matches the override 'magic'",
    ),
}
CASES = {name: (line, lambda place: None, said) for name, (line, said) in LINES.items()} | FILES


@pytest.fixture(autouse=True)
def calm(logging_as_it_was):
    """In every test of this file."""


def the_sentence(output):
    """The last line on stderr, as a terminal shows it; before it there may be one on the exception that caused it."""
    *others, line = output.splitlines()
    assert not others or (len(others) == 1 and others[0].startswith("caused by "))
    assert line.startswith("error: ")
    assert all(each.isprintable() for each in (*others, line))
    return line


@pytest.mark.parametrize(("line", "wrong", "said"), CASES.values(), ids=CASES)
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_hostile_input_is_one_sentence_and_touches_nothing(line, wrong, said, place, monkeypatch, capsys):
    wrong(place)
    before = contents(place.here)
    capsys.readouterr()
    with toy_names_at(place.data if place.data.exists() else place.toy), pytest.raises(SystemExit) as stopped:
        main(arguments(line, place))
    output = capsys.readouterr()
    assert stopped.value.code == 2
    assert place.filled(said) in the_sentence(output.err)
    assert "\x1b" not in output.out
    assert contents(place.here) == before


def test_the_list_has_every_command_and_no_name_twice():
    assert {line.split()[0] for line, *_ in CASES.values()} >= set(COMMANDS)
    assert len(CASES) == len(LINES) + len(FILES)


# ---- what only a process of its own shows: that it ends, and its exit code ------------------------------------------

NASTY = {
    "pipe for a checkpoint": (f"inspect {BAD_PTH}", pipe("bad.pth"), "there is no file {here}/bad.pth"),
    "pipe for a config": (train(of=BAD_YAML), pipe("bad.yaml"), "there is no config file {here}/bad.yaml"),
    "pipe for a detector": (run(), pipe("bad.onnx"), "bad.onnx is a pipe, a socket or a device"),
    "pipe for an image": (predict("{here}/a.jpg"), pipe("a.jpg"), "there is no image {here}/a.jpg"),
    "pipes for images": ("check-data {data}", pictured(as_pipe), UNFIT),
    **{
        name: CASES[name] for name in ("bomb of aliases", "checkpoint that runs a command", "command that plays tricks")
    },
}


@pytest.mark.parametrize(("line", "wrong", "said"), NASTY.values(), ids=NASTY)
def test_the_nastiest_end_a_process_of_their_own(line, wrong, said, place, in_process, tmp_path):
    wrong(place)
    before = contents(place.here)
    ended = in_process(arguments(line, place), tmp_path / "log", seconds=30)
    assert ended["status"] == 2
    *_, last = (tmp_path / "log").read_text().splitlines()  # check-data prints what it finds before
    assert place.filled(said) in the_sentence(last)
    assert contents(place.here) == before


FULL = {
    "convert": convert(),
    "convert and verify": convert(out="{out}/new.pth --to timm --verify"),
    "check-data": "check-data {toy} --draw 9 {out}/new.png",
    "predict": predict(flags=f"--bits FP,8,7,6,5,4,3,2 --quantization {{good}}/sweep/{QUANTIZATION}"),
    "make-toy-data": "make-toy-data {here}/new --scenes 4 --crops 5 --size 600 600 --difficulty 1",
    "export": export(flags="--check-images 0"),
}


@pytest.mark.parametrize("line", FULL.values(), ids=FULL)
def test_a_full_disk_is_one_sentence_and_costs_nothing(line, place, small_disk, capsys):
    before = contents(place.here)
    capsys.readouterr()
    small_disk()
    with toy_names_at(place.toy), pytest.raises(SystemExit) as stopped:
        main(arguments(line, place))
    assert stopped.value.code == 2
    assert "File too large" in the_sentence(capsys.readouterr().err)
    assert contents(place.here) == before
