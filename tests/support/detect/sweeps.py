"""Small sweeps, in process and by the command."""

from support.detect.configs import C4, CONFIGS, config, tiny_overrides

from ssql_det.detect.detector import load_trained_detector
from ssql_det.detect.quantized_evaluation import QuantizationSettings
from ssql_det.detect.sweep import sweep
from ssql_det.quant import Calibration, parse_bit_widths

TEST = "toy_voc_2007_test"
SETTINGS = QuantizationSettings("all", Calibration(4))
MANY_DETECTIONS = {"MODEL__RPN__POST_NMS_TOPK_TEST": 25, "TEST__DETECTIONS_PER_IMAGE": 150}  # so that no AP is zero


def run_sweep(weights, out, text="FP,8,4", settings=SETTINGS, quantization_file=None, **keys):
    cfg = config(C4, out, MODEL__WEIGHTS=weights, **MANY_DETECTIONS, **keys)
    return list(sweep(cfg, C4, *load_trained_detector(cfg), parse_bit_widths(text), settings, quantization_file))


def sweep_arguments(weights, out, *flags, bits="FP,8,4", calib_images="4", **keys):
    given = ["sweep", "--config-file", str(CONFIGS / C4), "--bits", bits, "--calib-images", calib_images, *flags]
    return [*given, *tiny_overrides(OUTPUT_DIR=out, MODEL__WEIGHTS=weights, **MANY_DETECTIONS, **keys)]
