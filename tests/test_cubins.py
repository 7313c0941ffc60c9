"""Loops and calls are found in listings, as `test_sass` asks for them."""

import pytest

from tests.cubins import Listing, listings_of

LISTING = """
	code for sm_87
		Function : _Z7productv
	.headerflags	@"EF_CUDA_SM87"
        /*0000*/                   S2R R0, SR_TID.X ;              /* 0x0000 */
        /*0010*/              @!P0 EXIT ;                          /* 0x0000 */
        /*0020*/                   MOV R1, RZ ;                    /* 0x0000 */
        /*0030*/                   LDGSTS.E.BYPASS.128 [R2], [R4.64] ;  /* 0x0000 */
        /*0040*/                   IMMA.16832.S8.S8 R8, R4.ROW, R6.COL, R8 ;  /* 0x0000 */
        /*0050*/                   CALL.REL.NOINC 0x100 ;          /* 0x0000 */
        /*0060*/              @!P1 BRA 0x40 ;                      /* 0x0000 */
        /*0070*/               @P2 CALL.REL.NOINC 0x90 ;           /* 0x0000 */
        /*0080*/                   BRA 0x30 ;                      /* 0x0000 */
        /*0090*/                   IMMA.16832.U8.S8 R8, R4.ROW, R6.COL, R8 ;  /* 0x0000 */
        /*00a0*/                   BRA.DIV UR4, 0xc0 ;             /* 0x0000 */
        /*00b0*/                   EXIT ;                          /* 0x0000 */
        /*00c0*/                   WARPSYNC R3 ;                   /* 0x0000 */
        /*00d0*/                   BRA 0x30 ;                      /* 0x0000 */
        /*0100*/                   RET.REL.NODEC R2 0x0 ;          /* 0x0000 */
	code for sm_120
		Function : _Z5otherv
        /*0000*/                   HFMA2.MMA R0, -RZ, RZ, 0, 0 ;   /* 0x0000 */
        /*0010*/              @UP0 STL [R1], R0 ;                  /* 0x0000 */
"""


@pytest.fixture
def product() -> Listing:
    return listings_of(LISTING)[0]


def test_kernels_and_their_gpus() -> None:
    assert [(each.name, each.gpu, len(each.code)) for each in listings_of(LISTING)] == [
        ("_Z7productv", 87, 15),
        ("_Z5otherv", 120, 2),
    ]


def test_operations_by_the_beginning_of_their_names(product: Listing) -> None:
    assert product.uses("LDGSTS") and product.uses("IMMA.16832.S8.S8")
    assert not product.uses("STL") and not product.uses("MMA")
    other = listings_of(LISTING)[1]
    assert other.uses("STL") and not other.uses("HMMA")


def test_loops_are_the_innermost_ones(product: Listing) -> None:
    """0x40 … 0x60, within 0x30 … 0x80. A rare case behind the end jumps back, and is no loop."""
    (loop,) = product.loops_with("IMMA.16832.S8.S8")
    assert [each.address for each in loop.code] == [0x40, 0x50, 0x60]
    (outer,) = product.loops_with("LDGSTS")
    assert (outer.code[0].address, outer.code[-1].address) == (0x30, 0x80)
    assert product.loops_with("IMMA.16832.U8.S8") == []


def test_leaving_a_loop_is_no_call(product: Listing) -> None:
    (loop,) = product.loops_with("IMMA.16832.S8.S8")
    assert [each.target for each in loop.calls()] == [0x100]
    (outer,) = product.loops_with("LDGSTS")
    assert [each.target for each in outer.calls()] == [0x100]  # and not 0x90
