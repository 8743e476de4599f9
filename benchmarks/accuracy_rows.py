"""Which trainings stand in which accuracy table: names of committed records, nothing computed."""

from __future__ import annotations

from accuracy_tables import FIVE, Line

CLIPPED = "lr 1e-3, warm-up, AdamW, clip 1"
FASTER = "lr 2e-3, warm-up, AdamW, clip 1"
TODAY = "decay 0.3, exact augmentation"  # the defaults since 0.5
NETWORK = "lightm_unet:scan_order=axes,norm_bias=1.0,stem=full"
NARROW = "lightm_unet:init_filters=16,scan_order=axes,norm_bias=1.0,stem=full"
CONVOLVED = "decoder=full,local_conv=true"

OURS = Line("32 filters", f"{NETWORK},drop_path=0.2", TODAY, folds=FIVE)
OURS_LONG = OURS.named("32 filters, twice as long", budget="10000it")
PLAIN = Line("PlainConvUNet, weight decay 0.3", "plain_conv_unet", TODAY, folds=FIVE)
PLAIN_LONG = PLAIN.named("PlainConvUNet, weight decay 0.3, twice as long", budget="10000it")
PLAIN_OWN = Line("PlainConvUNet", "plain_conv_unet", "exact augmentation", folds=FIVE)
CONVOLUTIONS = Line("32 filters, both convolutions", f"{NETWORK},drop_path=0.2,{CONVOLVED}", TODAY, folds=("0", "1"))

HIPPOCAMPUS = (
    OURS,
    OURS.named("its fold 2 (`model.pt`)", folds=("2",)),
    OURS_LONG,
    OURS_LONG.named("its fold 2", folds=("2",)),
    PLAIN_OWN,
    PLAIN,
    PLAIN_LONG,
)

# Before 0.5: another augmentation, weight decay 0.01.
OLD = Line("32 filters before 0.5", NETWORK, CLIPPED, folds=FIVE)
OLD_PLAIN = Line("PlainConvUNet before 0.5", "plain_conv_unet", folds=FIVE)
OLD_DECAY = Line("32 filters, weight decay 0.3", NETWORK, f"{CLIPPED}, decay 0.3")
OLD_DEPTH = Line("32 filters, stochastic depth 0.2", f"{NETWORK},drop_path=0.2", CLIPPED)
OLD_BOTH = Line("32 filters, both", f"{NETWORK},drop_path=0.2", f"{CLIPPED}, decay 0.3")
OLD_NARROW = Line("16 filters (`hippocampus_f16`)", NARROW, FASTER)
OLD_CONVOLUTIONS = Line(
    "32 filters, both convolutions, before 0.5", f"{NETWORK},{CONVOLVED}", CLIPPED, folds=("0", "1", "2", "4")
)
DYNUNET = Line("DynUNet", "dynunet", CLIPPED)
SEGRESNET = Line("SegResNet", "segresnet", CLIPPED)
RESIDUAL = Line("ResidualEncoderUNet", "residual_encoder_unet", CLIPPED)
PAPER = Line("32 filters, the paper's network, at 1e-3", "lightm_unet")

BEFORE = (
    OLD.named("32 filters"),
    OLD.named("its fold 2", folds=("2",)),
    OLD.named("32 filters, twice as long", folds=("2",), budget="10000it"),
    OLD_PLAIN.named("PlainConvUNet"),
    OLD.named("32 filters", folds=("0",)),
    OLD_DECAY,
    OLD_DEPTH,
    OLD_BOTH,
    OLD_NARROW,
    OLD_NARROW.named("16 filters, at 1e-3", variant=CLIPPED),
    OLD_PLAIN.named("PlainConvUNet", folds=("0",)),
    DYNUNET,
    SEGRESNET,
    RESIDUAL,
    PAPER,
    PAPER.named(
        "32 filters, the paper's network, alternating directions", network="lightm_unet:scan_order=alternating"
    ),
    PAPER.named("16 filters, the paper's network, at 1e-3", network="lightm_unet:init_filters=16"),
)

MINUTE = (
    OLD.named("32 filters", folds=("0",), budget="60s"),
    OLD_NARROW.named("16 filters, at 1e-3", variant=CLIPPED, budget="60s"),
    OLD_PLAIN.named("PlainConvUNet", folds=("0",), budget="60s"),
)

LUNG = Line("32 filters, half size (`lung_xray_f32`)", NETWORK, f"half size, {CLIPPED}", task="lung_xray")
LUNG_NARROW = LUNG.named("16 filters, half size (`lung_xray`)", network=NARROW)
LUNG_PLAIN = LUNG.named("PlainConvUNet, half size, with the same settings", network="plain_conv_unet")
LUNG_PAPER = LUNG.named(
    "32 filters, the paper's network (`lung_xray_paper`)", network="lightm_unet", variant="", budget="2500it"
)
LUNG_CONVOLUTIONS = LUNG.named("32 filters, both convolutions", network=f"{NETWORK},{CONVOLVED}")
LUNG_NARROW_CONVOLUTIONS = LUNG.named("16 filters, both convolutions", network=f"{NARROW},{CONVOLVED}")
LUNGS = (
    LUNG,
    LUNG_NARROW,
    LUNG_PLAIN,
    LUNG_NARROW.named("16 filters, half size, at 2e-3", variant="half size, lr 2e-3, warm-up, AdamW"),
    LUNG.named("32 filters, half size, unstable at 2e-3", variant="half size, lr 2e-3, warm-up, AdamW"),
    LUNG_PAPER,
)

# What each change was worth: 16 filters, 2,000 iterations. "EMA": with averaged weights.
SHORT = Line("the paper's network, Adam, 1e-3", "lightm_unet:init_filters=16", budget="2000it")
AXES = "lightm_unet:init_filters=16,scan_order=axes"
CHANGES = (
    SHORT,
    SHORT.named("average of the weights (two seeds)", variant="EMA"),
    SHORT.named("batch Dice", variant="batch Dice, EMA"),
    SHORT.named("3e-3 with warm-up", variant="lr 3e-3, warm-up, EMA"),
    SHORT.named("`scan_order` axes", network=AXES, variant="EMA"),
    SHORT.named(
        "+ axes, `norm_bias` 1, 2e-3 with warm-up", network=f"{AXES},norm_bias=1.0", variant="lr 2e-3, warm-up"
    ),
    SHORT.named("+ `stem` full", network=NARROW, variant="lr 2e-3, warm-up"),
    SHORT.named("+ AdamW", network=NARROW, variant="lr 2e-3, warm-up, AdamW"),
    SHORT.named("PlainConvUNet, Adam, 1e-3", network="plain_conv_unet", variant="EMA"),
    SHORT.named("PlainConvUNet, nnU-Net's SGD", network="plain_conv_unet", variant="SGD, EMA"),
)
SEEDS = tuple(SHORT.named(f"seed {seed}", variant="EMA", seed=seed) for seed in (0, 1))
AT_2E3 = Line("2e-3", NARROW, FASTER, budget="2000it")
AT_1E3 = Line("1e-3, the default", NARROW, CLIPPED, budget="2000it")
SHORT_CONVOLUTIONS = AT_2E3.named("2e-3, both convolutions", network=f"{NARROW},{CONVOLVED}")
CLIPPED_CHANGES = (
    AT_2E3,
    AT_2E3.named("2e-3, batches of 18 instead of 9", variant=f"{FASTER}, batch 18"),
    AT_2E3.named("2e-3, deep supervision", network=f"{NARROW},deep_supervision=true"),
    AT_2E3.named("2e-3, full convolutions in the decoder", network=f"{NARROW},decoder=full"),
    AT_2E3.named("2e-3, a depthwise convolution before each block of the encoder", network=f"{NARROW},local_conv=true"),
    SHORT_CONVOLUTIONS,
    AT_1E3,
    AT_1E3.named("1e-3, float32 instead of bfloat16", variant=f"{CLIPPED}, float32"),
    AT_1E3.named(
        "1e-3, `scan_order` bidirectional instead of axes", network=NARROW.replace("order=axes", "order=bidirectional")
    ),
)

AGAINST_NNUNET = {"5,000 iterations": (OURS, PLAIN), "10,000 iterations": (OURS_LONG, PLAIN_LONG)}
COMPARISONS = (
    (OURS, PLAIN),
    (OURS_LONG, PLAIN_LONG),
    (OURS_LONG, PLAIN),
    (OURS, PLAIN_OWN),
    (OURS_LONG, OURS),
    (PLAIN_LONG, PLAIN),
    (OURS, OLD),
    (PLAIN_OWN, OLD_PLAIN),
    (PLAIN, PLAIN_OWN),
    (CONVOLUTIONS, OURS),
)
COMPARISONS_BEFORE = (
    (OLD.named("32 filters", folds=("0",)), SEGRESNET),
    (OLD.named("32 filters", folds=("0",)), DYNUNET),
    (OLD.named("32 filters", folds=("0",)), RESIDUAL),
    (OLD_NARROW.named("16 filters"), OLD_PLAIN.named("PlainConvUNet")),
    (OLD_DECAY, OLD.named("32 filters")),
    (OLD_DEPTH, OLD.named("32 filters")),
    (OLD_BOTH, OLD.named("32 filters")),
    (OLD_CONVOLUTIONS.named("32 filters, both convolutions"), OLD.named("32 filters")),
    (SHORT_CONVOLUTIONS.named("16 filters, both convolutions, 2,000 iterations"), AT_2E3.named("without them")),
)
COMPARISONS_LUNGS = (
    (LUNG.named("32 filters"), LUNG_PLAIN.named("PlainConvUNet")),
    (LUNG_NARROW.named("16 filters"), LUNG_PLAIN.named("PlainConvUNet")),
)
CONVOLUTIONS_LUNGS = (
    (LUNG_CONVOLUTIONS, LUNG.named("32 filters")),
    (LUNG_NARROW_CONVOLUTIONS, LUNG_NARROW.named("16 filters")),
)
# Weights in bundle/models -> the training that they come from.
SHIPPED = {
    "models/model.pt": OURS.named("hippocampus, fold 2", folds=("2",)),
    "models/hippocampus_f16/model.pt": OLD_NARROW.named("hippocampus, fold 0"),
    "models/lung_xray/model.pt": LUNG_NARROW.named("lung X-rays, half size"),
    "models/lung_xray_f32/model.pt": LUNG.named("lung X-rays, half size"),
    "models/lung_xray_paper/model.pt": LUNG_PAPER.named("lung X-rays"),
}
