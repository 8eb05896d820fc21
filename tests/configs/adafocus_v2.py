"""An ordinary mmengine config: AdaFocus V2, tiny, trained by mmaction2's tools on its VideoDataset.

    python PATH_OF/mmaction/.mim/tools/train.py tests/configs/adafocus_v2.py

The folder named by FOCUSBENCH_TEST_CLIPS holds `train.txt` and `val.txt` (lines of `file label`) beside the videos.
"""

custom_imports = dict(imports=["adafocus.v2"])
default_scope = "mmaction"

model = dict(
    type="AdaFocusV2",
    num_classes=2,
    resolution=64,
    frames=4,
    patch_size=32,
    glance="mbtiny",
    glance_side=16,
    glance_resize="area",
    focus="restiny",
    policy_channels=16,
    policy_hidden=64,
    classifier_hidden=0,
    classifier_shared=True,
)

decode = [
    dict(type="PyAVInit"),
    dict(type="SampleFrames", clip_len=1, frame_interval=1, num_clips=4),
    dict(type="PyAVDecode"),
    dict(type="Resize", scale=(-1, 64)),
    dict(type="CenterCrop", crop_size=64),
]
pack = [dict(type="FormatShape", input_format="NCHW"), dict(type="PackActionInputs")]

train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="VideoDataset",
        ann_file="{{$FOCUSBENCH_TEST_CLIPS:clips}}/train.txt",
        data_prefix=dict(video="{{$FOCUSBENCH_TEST_CLIPS:clips}}"),
        pipeline=[*decode, dict(type="Flip", flip_ratio=0.5), *pack],
    ),
)
val_dataloader = dict(
    batch_size=3,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="VideoDataset",
        ann_file="{{$FOCUSBENCH_TEST_CLIPS:clips}}/val.txt",
        data_prefix=dict(video="{{$FOCUSBENCH_TEST_CLIPS:clips}}"),
        pipeline=[*decode, *pack],
        test_mode=True,
    ),
)

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=4, val_interval=4)
val_cfg = dict(type="ValLoop")
val_evaluator = dict(type="AccMetric")
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=0.003))
default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=4), logger=dict(type="LoggerHook", interval=1))
randomness = dict(seed=0)
