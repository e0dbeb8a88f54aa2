"""Bytes that a program sends, from its text."""

from collectives import collective_bytes

PROGRAM = """HloModule step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-gather.3 = c64[4,8]{1,0} all-gather(%w), channel_id=1, dimensions={0}
  ROOT %t = (s32[], f32[8]) tuple(%i, %x)
}

%once (p: f32[2]) -> f32[2] {
  ROOT %all-reduce.9 = f32[2]{0} all-reduce(%p), to_apply=%sum
}

%until.2 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-reduce.7 = pred[]{} all-reduce(%q), to_apply=%sum
}

ENTRY %main (p0: f32[8]) -> f32[8] {
  %all-reduce.1 = (f32[16]{0}, f32[]) all-reduce(%a, %b), to_apply=%sum
  %while.1 = (s32[], f32[8]) while(%t), condition=%c, body=%body.1, backend_config={"known_trip_count":{"n":"5"}}
  %while.2 = (s32[], f32[8]) while(%t), condition=%c, body=%until.2
  %conditional.1 = f32[2] conditional(%i, %x, %y), branch_computations={%once, %other}
}
"""


def test_a_collective_counts_once_a_turn_of_its_loop():
    found = collective_bytes(PROGRAM, unknown_turns=3)
    assert found == {"all-gather": 5 * 4 * 8 * 8, "all-reduce": 17 * 4 + 3 * 1 + 2 * 4}
