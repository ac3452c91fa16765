"""What the benchmarks say of machine code (benchmarks/gpu_model/instructions.py)."""

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks.gpu_model.instructions import (  # noqa: E402
    KINDS,
    LIBRARIES,
    REST,
    Mix,
    disassembler,
    functions,
    inner_loop,
    instructions_table,
    kind_of,
    mixes_of,
)
from benchmarks.gpu_model.resources import ROOT, built  # noqa: E402

# Two loops, one in the other, the second of which multiplies; then a small one that loads, in the
# disassembler's words.
SASS = """
	code for sm_90
		Function : _Z5tilesIfEvT_
	.headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                /* 0x00000a00ff017b82 */
                                                                         /* 0x000ff00000000800 */
        /*0010*/                   LDG.E R6, desc[UR4][R6.64] ;          /* 0x0000000406067981 */
        /*0020*/                   LDSM.16.M88.4 R8, [R2] ;              /* 0x000000000208783b */
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;  /* 0x000000020804723c */
        /*0040*/                   IADD3 R2, R2, 0x10, RZ ;              /* 0x0000001002027810 */
        /*0050*/              @!P0 BRA 0x20 ;                            /* 0xfffffffc00f88947 */
        /*0060*/                   FADD.FTZ R3, R3, R4 ;                 /* 0x0000000403037221 */
        /*0070*/               @P1 BRA 0x10 ;                            /* 0xfffffffc00e48947 */
        /*0080*/                   LDG.E R6, desc[UR4][R6.64] ;          /* 0x0000000406067981 */
        /*0090*/              @!P2 BRA 0x80 ;                            /* 0xfffffffc00f88947 */
        /*00a0*/                   EXIT ;                                /* 0x000000000000794d */
        /*00b0*/                   BRA 0xb0;                             /* 0xfffffffc00fc7947 */
		..........
		Function : _Z4copyv
        /*0000*/                   STG.E desc[UR4][R2.64], R5 ;          /* 0x0000000502007986 */
        /*0010*/                   EXIT ;                                /* 0x000000000000794d */
"""


def test_inner_loop_is_the_smallest_with_half_of_the_arithmetic():
    found = {name: inner_loop(code) for name, code in functions(iter(SASS.splitlines()))}
    assert found.keys() == {"_Z5tilesIfEvT_", "_Z4copyv"}
    tiles = found["_Z5tilesIfEvT_"]
    assert tiles.loop
    assert tiles.count == {"shared memory": 1, "tensor": 1, REST: 1, "branches": 1}
    assert found["_Z4copyv"] == Mix(False, Counter({"global memory": 1, "branches": 1}))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(
            ("LDGSTS.E.128", "global memory"),
            ("LDGDEPBAR", "waiting"),
            ("LDSM.16.M88.4", "shared memory"),
        ),
        *(("RED.E.ADD.F32", "global memory"), ("REDUX.SUM.S32", "lanes"), ("RET.REL", "branches")),
        *(
            ("F2FP.BF16.F32.PACK_AB", "conversions"),
            ("FSETP.GT.AND", "float32"),
            ("IMAD.MOV", REST),
        ),
        *(("ATOMS.ADD", "shared memory"), ("ATOMG.E.ADD", "global memory"), ("UIADD3", REST)),
        *(("LD.E.64", "global memory"), ("LDC.64", REST), ("ULDC", REST), ("BAR.SYNC", "waiting")),
        *(
            ("HMMA.16816.F32", "tensor"),
            ("HFMA2.MMA", "float16"),
            ("DADD", "float64"),
            ("LDL", "spilled"),
        ),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name) == kind


@pytest.mark.slow
def test_every_kernel_that_was_built_is_found():
    program, resources = disassembler(), built()
    if program is None:
        pytest.skip("there is no cuobjdump")
    if not resources or not list(ROOT.glob(LIBRARIES)):
        pytest.skip("build/ has no CUDA build")
    mixes = mixes_of(program)
    assert mixes.keys() >= {name for name, architecture in resources if architecture == "sm_90a"}
    launch = {"kernel": next(iter(mixes))}
    step = {"operator": "an operator", "dtype": "float32", "launches": [launch]}
    table = instructions_table([step], mixes)
    assert all(kind in table for kind in KINDS) and "## an operator" in table
