"""Room: everything that knows what is broken in the packages below, and nothing else.

Each entry names its upstream issue and goes when upstream is mended; `tests/compat` holds a test for each, which
fails without the workaround or says that upstream no longer needs it. Imports nothing of the harness but errors.

    imports      mmaction2 #2714: the wheel lacks `mmaction.models.localizers.drn`; import before mmaction
                 mmcv-lite warns of compiled operators that no recognizer here uses
    checkpoints  mmengine #1655: `weights_only` refuses the Runner's own checkpoints      plain_checkpoint
                 CheckpointHook deletes the old one before the new one is whole           AtomicCheckpointHook
    seeds        Runner(resume=True) does not restore random state                        EpochSeedHook
    precision    AmpOptimWrapper asserts a GPU                                            AutocastOptimWrapper
    processes    launcher='pytorch' calls torch.cuda.set_device without a GPU             runner_launch
                 get_device() is fixed at import: `--device cpu` has no effect            choose_device
    counting     fvcore uses `torch.jit.script`, of which torch warns at import           FlopCountAnalysis
    memory       the CPU allocator raises a bare RuntimeError where memory runs out       is_out_of_memory
"""
