"""Repairs of third-party toolkits: one file per fault, each opening with the upstream issue.

Every file here but those marked * has the same two functions:

``fault_present() -> bool``
    Whether the fault is there *now*: false for a toolkit that is not installed, that upstream has
    mended, or that ``repair()`` has already mended in this process.
``repair() -> None``
    Mends it in this process, as often as one likes; does nothing where the fault is absent.
    Nothing is ever written into site-packages.

========================  ======================================================================
file                      what it answers
========================  ======================================================================
robustbench_autoattack    robustbench imports ``autoattack``, published as ``pyautoattack``
robustbench_import        importing robustbench warns about pkg_resources, timm and torch.jit
robustbench_overwritten   torchattacks' wheel overwrites robustbench's files (cannot be mended in
                          process: ``repair()`` raises the error that names the command)
robustbench_state         ``benchmark(aa_state_path=...)`` takes the mean of a boolean tensor
robustbench_template      ``leaderboard.html.j2`` is in neither wheel nor sdist
mmcv_ops                  ``import mmdet.models`` needs mmcv's compiled operators
mmdet_ssd                 SSD prediction: 'SSDHead' object has no attribute 'loss_cls'
mmdet_eval_map            ``eval_map`` forks a process with threads for every stage, and may hang
learn2learn_import        importing learn2learn prints gym's notice
learn2learn_vision *      ``CNN4`` fits images of 84 pixels only: ``cnn4()`` computes the size
learn2learn_resnet12 *    ``ResNet12``: DropBlock and pooling fit 84 pixels only; its counter of
                          batches counts attacks too and is not saved
learn2learn_wrn28 *       ``WRN28`` pools by 21: 84 pixels only
qpth_absent               learn2learn's ``SVClassifier`` needs qpth, which is not installed
qpth_bridge *             the solver that qpth_absent provides (imports torch)
autoattack_bridge *       the class that robustbench_autoattack provides (imports torch)
========================  ======================================================================

Importing this package or any unstarred file in it imports no toolkit and no torch.
"""
