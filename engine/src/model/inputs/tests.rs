//! What a step sends is laid out as the kernels read it.

use scheduler::{Emit, PageId, RequestId, Row, SlotIdx, StepId, StepPlan, TokenId};

use super::*;
use crate::cache::PageTables;
use crate::device::cuda::testing::TestDevice;

const SIZES: InputSizes =
    InputSizes { n_tokens: 12, n_slots: 4, n_groups: 2, n_context: 64, is_deterministic: false };

const PLAIN: SentRows<'static> = SentRows { n_padded: None, drawn: &[], late: &[] };

/// Inputs in poisoned memory, whose tables are zero.
fn inputs(device: &TestDevice, sizes: InputSizes) -> DeviceInputs {
    let mut carve = Carve::new(DevicePtr::NULL);
    InputPlaces::carve(sizes, &mut carve);
    let places = InputPlaces::carve(sizes, &mut Carve::new(device.poisoned::<u8>(carve.n_bytes())));
    let n_table_bytes = sizes.n_groups * sizes.n_slots * sizes.n_entries() * WORD;
    device.exec.zero(places.tables, n_table_bytes).expect("it is filled");
    let none = DevicePtr::NULL;
    let workspace = Workspace { sums: none, stats: none, n_arrived: none };
    DeviceInputs::new(sizes, places, none, workspace)
}

fn outbox(device: &TestDevice) -> Outbox {
    Outbox::new(&device.exec, SIZES.n_sent_bytes()).expect("there is room")
}

/// Rows of a slot, a first position, a number of tokens and what they emit.
fn batch(rows: &[(u32, usize, usize, Emit)]) -> Batch {
    let mut plan = StepPlan {
        step: StepId(0),
        admitted: Vec::new(),
        pages: Vec::new(),
        moves: Vec::new(),
        rows: Vec::new(),
        tokens: Vec::new(),
    };
    for &(slot, start, n_tokens, emit) in rows {
        plan.rows.push(Row {
            request: RequestId(slot.into()),
            slot: SlotIdx(slot),
            start,
            n_tokens,
            token_idx: plan.tokens.len(),
            n_candidates: 0,
            answer_idx: plan.rows.len(),
            follows: None,
            emit,
        });
        let first = 100 * (slot + 1) + start as u32;
        plan.tokens.extend((first..).take(n_tokens).map(TokenId));
    }
    let mut batch = Batch::new(0, SIZES.n_tokens, SIZES.n_slots);
    batch.fill(&plan, &PageTables::new(0, 0, 0));
    batch
}

/// One that decodes, a chunk of a prompt that is scored, one that decodes, a chunk that goes on.
fn mixed() -> Batch {
    batch(&[
        (2, 5, 1, Emit::Sample),
        (0, 8, 3, Emit::ScoreAndSample),
        (3, 9, 1, Emit::Sample),
        (1, 0, 2, Emit::Nothing),
    ])
}

/// Sends, and reads back what lies on the device.
fn sent(
    device: &TestDevice,
    inputs: &mut DeviceInputs,
    batch: &Batch,
    rows: SentRows<'_>,
) -> Vec<i32> {
    let mut outbox = outbox(device);
    inputs.send((&device.exec, &mut outbox), batch, &[], rows).expect("it is sent");
    device.download(inputs.places.words, inputs.words.len())
}

#[test]
fn rows_of_one_token_and_of_several_are_sent_apart() {
    let device = TestDevice::open(6);
    let mut inputs = inputs(&device, SIZES);
    // The device draws after the first and the last token that emits.
    let drawn = [true, false, false, false, true];
    let words = sent(&device, &mut inputs, &mixed(), SentRows { drawn: &drawn, ..PLAIN });
    let expected: [&[i32]; 8] = [
        &[305, 108, 109, 110, 409, 200, 201],
        &[5, 8, 9, 10, 9, 0, 1],
        // Rows of four words begin at a multiple of four.
        &[2, 0, 0, 0, 3, 1, 1, 0, 0, 0],
        &[2, 0, 1, 5, 3, 4, 1, 9],
        &[0, 1, 3, 8, 1, 5, 2, 0],
        &[0, 1, 2, 3, 4],
        &[2, -1, -1, -1, 3],
        &[],
    ];
    assert_eq!(words, expected.concat());
    let at = |part: usize| inputs.word(expected[..part].iter().map(|words| words.len()).sum());
    let rows = inputs.rows(GroupIdx(1));
    assert_eq!((rows.decode, rows.n_decode, rows.prefill), (at(3), 2, at(4)));
    assert_eq!(rows.prefill_lengths, [3, 2]);
    let places = inputs.places(GroupIdx(1));
    assert_eq!((places.positions, places.slots), (at(1), at(2)));
    let tables = inputs.places.tables.offset(SIZES.n_slots * 4 * WORD);
    assert_eq!((rows.tables.first, rows.tables.n_entries), (tables, 4));
    assert_eq!(inputs.emitting().expect("some do not emit").first, at(5));
    assert_eq!(inputs.sampled(3), at(6).offset(3 * WORD));
}

#[test]
fn a_recorded_step_has_rows_that_go_nowhere() {
    let device = TestDevice::open(6);
    let batch = batch(&[(2, 5, 1, Emit::Sample), (3, 9, 1, Emit::Sample)]);
    for is_deterministic in [false, true] {
        let mut inputs = inputs(&device, InputSizes { is_deterministic, ..SIZES });
        let rows = SentRows { n_padded: Some(4), drawn: &[false, true], late: &[(1, SlotIdx(3))] };
        let words = sent(&device, &mut inputs, &batch, rows);
        let expected: [&[i32]; 6] = [
            // Slot 3's own last token, which the host has not seen.
            &[305, -1 - 3, 0, 0],
            &[5, 9, 0, 0],
            &[2, 3, -1, -1],
            &[2, 0, 1, 5, 3, 1, 1, 9],
            &[-1, 0, 0, 0, -1, 0, 0, 0],
            &[-1, 3, -1, -1],
        ];
        assert_eq!(words, expected.concat());
        let rows = inputs.rows(GroupIdx(0));
        let (n_decode, lengths): (usize, &[usize]) =
            if is_deterministic { (0, &[1; 4]) } else { (4, &[]) };
        assert_eq!((rows.n_decode, rows.prefill_lengths), (n_decode, lengths));
        assert_eq!(inputs.emitting(), None, "every row is taken to emit");
    }
}

#[test]
fn a_deterministic_step_attends_for_all_rows_alike() {
    let device = TestDevice::open(6);
    let mut inputs = inputs(&device, InputSizes { is_deterministic: true, ..SIZES });
    let words = sent(&device, &mut inputs, &mixed(), PLAIN);
    let rows = inputs.rows(GroupIdx(0));
    assert_eq!((rows.n_decode, rows.prefill_lengths), (0, &[1, 3, 1, 2][..]));
    let expected = [[2, 0, 1, 5], [0, 1, 3, 8], [3, 4, 1, 9], [1, 5, 2, 0]];
    assert_eq!(words[inputs.layout.prefill..][..16], expected.concat());
}

#[test]
fn tables_change_where_a_plan_changes_them() {
    let device = TestDevice::open(6);
    let mut inputs = inputs(&device, SIZES);
    let update = |slot, group, page_idx, page| PageUpdate {
        slot: SlotIdx(slot),
        group: GroupIdx(group),
        page_idx,
        page: PageId(page),
    };
    // Runs of one, two and three entries, and many more than there is room to send at once.
    let mut pages = vec![
        update(3, 1, 3, 7),
        update(0, 0, 0, 11),
        update(0, 0, 1, 12),
        update(2, 1, 0, 13),
        update(2, 1, 1, 14),
        update(2, 1, 2, 15),
    ];
    assert!(200 > SIZES.n_words());
    pages.extend((0..200).map(|page| update(1, 0, page % 2 * 2, 1000 + page)));
    let rows = PLAIN;
    let mut outbox = outbox(&device);
    inputs.send((&device.exec, &mut outbox), &mixed(), &pages, rows).expect("it is sent");
    let mut expected = [[0; 4]; 8];
    expected[0] = [11, 12, 0, 0];
    expected[1] = [1198, 0, 1199, 0];
    expected[4 + 2] = [13, 14, 15, 0];
    expected[4 + 3] = [0, 0, 0, 7];
    assert_eq!(device.download::<i32>(inputs.places.tables, 32), expected.concat());
    // What a step sends lies in the same memory, and is whole.
    let words: Vec<i32> = device.download(inputs.places.words, inputs.words.len());
    assert_eq!(words, inputs.words);
}
