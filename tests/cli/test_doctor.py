import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mast_ext
from mast_ext.cli import doctor

HERE = {"torch": torch.__version__, "cpu_isas": "avx2", "cuda": None, "cuda_archs": ""}
WHEEL = "80-real 90a-real 100-real 120"


def states(out):
    return {
        line[8:].split("  ")[0].strip(): line.split()[0]
        for line in out.splitlines()
        if line[0] != " "
    }


def test_reports_what_is_there(call):
    status, out, err = call("doctor")
    assert (status, err) == (0, "")
    assert f"torch {torch.__version__}".split("+")[0] in out and " for CPU " in out
    found = states(out)
    assert set(found.values()) <= {"ok", "slow"}
    assert {
        "python",
        "torch",
        "cpu",
        "native kernels",
        "gpu",
        "dali",
        *doctor.TRAINING,
        *doctor.OPTIONAL,
    } <= found.keys()


def test_names_what_is_missing_with_the_fix(call, monkeypatch):
    """Once, however many packages there are; losses work without them."""
    for module in ("timm", "lightning"):
        monkeypatch.setitem(sys.modules, module, None)
    for arguments, status, state in (((), 0, "absent"), (("--train",), 1, "missing")):
        found, out, _ = call("doctor", *arguments)
        assert found == status
        assert {name for name, its in states(out).items() if its == state} == {"timm", "lightning"}
        assert out.count("fix: to train by mast-ext: pip install 'mast-ext[train]'") == 1


def test_losses_need_their_kernels(call, monkeypatch):
    monkeypatch.setattr(doctor, "_native_build", lambda: (None, "no module"))
    assert call("doctor")[0] == 1


def test_refuses_other_options(call):
    assert call("doctor", "--train", "-h")[0] == 0
    status, _, err = call("doctor", "--fast")
    assert (status, err) == (2, "mast-ext: doctor takes --train and nothing else, got --fast\n")


def test_dali_may_be_missing(monkeypatch):
    def version(package):
        raise doctor.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(doctor.metadata, "version", version)
    (finding,) = [f for f in doctor.examine() if f.what == "dali"]
    assert finding.state == "ok" and finding.detail.startswith("not installed, torchvision renders")


# build information, state, part of the line
BUILDS = [
    (None, "missing", "no module"),
    (HERE, "ok", "for CPU avx2"),
    ({**HERE, "build_type": "Debug"}, "slow", "Debug"),
]


@pytest.mark.parametrize(("build", "state", "part"), BUILDS)
def test_native_kernels(monkeypatch, build, state, part):
    monkeypatch.setattr(doctor, "_native_build", lambda: (build, "no module"))
    (finding,) = [f for f in doctor.examine() if f.what == "native kernels"]
    assert finding.state == state and part in finding.detail
    assert bool(finding.fix) == (state != "ok")


def there_are(monkeypatch, capabilities):
    """GPUs of these compute capabilities: GPU 0 and so on."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i=0: f"GPU {i}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i=0: capabilities[i])


# a GPU is there, torch's CUDA, the kernels' CUDA, nvidia-smi -> state, fix
GPUS = [
    (True, "13.0", "13.0", True, "ok", ""),
    (True, "13.0", None, True, "missing", "with nvcc of CUDA 13.0"),
    (False, None, None, True, "slow", "install a CUDA build of torch"),
    (False, None, None, False, "ok", ""),
    (False, "13.0", "13.0", False, "ok", ""),
]


@pytest.mark.parametrize(("present", "torch_cuda", "native", "driver", "state", "fix"), GPUS)
def test_gpu(monkeypatch, present, torch_cuda, native, driver, state, fix):
    build = {**HERE, "cuda": native, "cuda_archs": WHEEL if native else ""}
    monkeypatch.setattr(doctor, "_native_build", lambda: (build, ""))
    there_are(monkeypatch, [(9, 0)] if present else [])
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: name if driver else None)
    (finding,) = [f for f in doctor.examine() if f.what == "gpu"]
    assert finding.state == state and finding.fix.startswith(fix)
    assert bool(finding.fix) == bool(fix)


# architectures, compute capabilities of GPUs -> state, detail, fix
OLDER, NATIVE = (
    "take the CPU or, with CUDA_VISIBLE_DEVICES, GPUs of",
    "on this machine, with nvcc: ",
)
FITS = [
    (WHEEL, [(8, 0), (9, 0), (8, 9)], "ok", "GPU 0, kernels built with CUDA 13.0 for 80-real", ""),
    (WHEEL, [(7, 5)], "missing", "GPU 0 (7.5), but kernels built with CUDA 13.0 for 80-", OLDER),
    (WHEEL, [(11, 0)], "missing", "GPU 0 (11.0), but kernels", NATIVE),
    (WHEEL, [(9, 0), (7, 5)], "slow", "GPU 1 (7.5), but kernels", OLDER),
    (WHEEL, [(7, 5), (9, 0), (11, 0)], "slow", "GPU 0 (7.5), GPU 2 (11.0), but", OLDER),
    ("90-real", [(8, 0)], "missing", "GPU 0 (8.0), but", NATIVE),  # moved to another machine
    ("90-real", [(8, 0), (8, 0)], "missing", "(8.0), but", NATIVE),
    ("native", [(8, 0)], "ok", "for native", ""),
]


@pytest.mark.parametrize(("archs", "capabilities", "state", "detail", "fix"), FITS, ids=str)
def test_gpus_without_kernels(monkeypatch, archs, capabilities, state, detail, fix):
    build = {**HERE, "cuda": "13.0", "cuda_archs": archs}
    monkeypatch.setattr(doctor, "_native_build", lambda: (build, ""))
    there_are(monkeypatch, capabilities)
    (finding,) = [f for f in doctor.examine() if f.what == "gpu"]
    assert finding.state == state and detail in finding.detail
    assert finding.fix.startswith(fix) and bool(finding.fix) == bool(fix)


# Of GPUs that there are. Architectures -> the compute capabilities on which they run
GENERATIONS = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1)]
RUN_ON = {
    "": "",
    "80-real": "8.0 8.6 8.9",
    "86-real": "8.6 8.9",
    "90-real": "9.0",
    "90a-real": "9.0",
    "90a": "9.0",
    "90a-virtual": "9.0",
    "100-real": "10.0 10.3",
    "103-real": "10.3",
    "100a-real": "10.0",
    "100f-real": "10.0 10.3",
    "100f": "10.0 10.3",
    "103f": "10.3",
    "120f-virtual": "12.0 12.1",
    "121a": "12.1",
    "120": "12.0 12.1",
    "103": "10.3 11.0 12.0 12.1",
    "90-virtual": "9.0 10.0 10.3 11.0 12.0 12.1",
    "75": "7.5 8.0 8.6 8.9 9.0 10.0 10.3 11.0 12.0 12.1",
    "90a-real 80-real": "8.0 8.6 8.9 9.0",
    WHEEL: "8.0 8.6 8.9 9.0 10.0 10.3 12.0 12.1",
    "80-real 86-real 89-real 90a-real 100-real 120": "8.0 8.6 8.9 9.0 10.0 10.3 12.0 12.1",
}


@pytest.mark.parametrize(("archs", "runs"), RUN_ON.items())
def test_runs_on(archs, runs):
    found = [
        f"{major}.{minor}" for major, minor in GENERATIONS if doctor.runs_on((major, minor), archs)
    ]
    assert found == runs.split()


@pytest.mark.parametrize("archs", ["native", "all-major", "OFF", "80-real sm_90"])
def test_words_of_which_nothing_is_known(archs):
    assert doctor.runs_on((9, 0), archs)


# torch.distributed is there, gloo, nccl, GPUs -> state, detail, fix
BACKENDS = [
    (True, True, True, 0, "ok", "gloo and nccl", ""),
    (True, True, False, 1, "ok", "gloo", ""),
    (True, True, False, 2, "slow", "gloo", "install a build of torch with nccl, for 2 GPUs"),
    (True, False, True, 2, "slow", "nccl", "install a build of torch with gloo"),
    (False, False, False, 0, "slow", "one process only", "install a build of torch with distr"),
]


@pytest.mark.parametrize(("there", "gloo", "nccl", "gpus", "state", "detail", "fix"), BACKENDS)
def test_distributed(monkeypatch, there, gloo, nccl, gpus, state, detail, fix):
    there_are(monkeypatch, [(9, 0)] * gpus)
    for name, value in (("", there), ("gloo_", gloo), ("nccl_", nccl)):
        monkeypatch.setattr(torch.distributed, f"is_{name}available", lambda value=value: value)
    (finding,) = [f for f in doctor.examine() if f.what == "distributed"]
    assert (finding.state, bool(finding.fix)) == (state, bool(fix))
    assert detail in finding.detail and finding.fix.startswith(fix)


def test_package_and_doctor_need_no_training_package():
    """In a fresh interpreter in which none of them can be imported."""
    blocked = [*doctor.TRAINING.values()]
    code = (
        "import sys\n"
        f"for name in {blocked}: sys.modules[name] = None\n"
        "import mast_ext\n"
        "from mast_ext.cli.main import main\n"
        "sys.exit(main(['doctor']))\n"
    )
    root = Path(mast_ext.__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    absent = [name for name, state in states(found.stdout).items() if state == "absent"]
    assert absent == list(doctor.TRAINING)
