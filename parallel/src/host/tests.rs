//! Collectives against a serial reference, and what happens when ranks disagree.

use crate::fixture::{Answer, Failure, Random, config, script, scripted};
use crate::{Call, CollectiveError, RankCause, RankError, Seat, World};

const SEED: u64 = 7;

/// What rank `rank_idx` brings to collective `turn`.
fn slice(turn: u64, rank_idx: usize, n_floats: usize) -> Vec<f32> {
    Random(SEED ^ (turn << 8) ^ rank_idx as u64).floats(n_floats)
}

/// The sum in the given order of ranks.
fn serial_sum(turn: u64, n_floats: usize, mut ranks: impl Iterator<Item = usize>) -> Vec<f32> {
    let mut sum = slice(turn, ranks.next().expect("a world has a rank"), n_floats);
    for rank_idx in ranks {
        sum.iter_mut().zip(slice(turn, rank_idx, n_floats)).for_each(|(sum, x)| *sum += x);
    }
    sum
}

fn bits(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn sums_have_the_bits_of_a_serial_sum_in_rank_order() {
    // Lengths around both ways of summing, and around uneven shares.
    let lengths = [0, 1, 2, 3, 7, 8, 9, 128, 2047, 2048, 2049, 5001, 8192, 8193, 20_011];
    for n_ranks in [1, 2, 3, 4, 8] {
        let mut pool = scripted(config(n_ranks, 20_011));
        for (turn, n_floats) in (0..).zip(lengths) {
            let replies = pool
                .broadcast(script(move |seat| {
                    let mut data = slice(turn, seat.rank.idx(), n_floats);
                    seat.communicator.all_reduce_sum(&mut data)?;
                    Ok(data)
                }))
                .expect("nothing fails");
            let expected = bits(&serial_sum(turn, n_floats, 0..n_ranks));
            for (rank_idx, reply) in replies.iter().enumerate() {
                let found = bits(reply);
                assert!(found == expected, "rank {rank_idx} of {n_ranks}, {n_floats} floats");
            }
        }
    }
}

#[test]
fn the_order_of_a_sum_shows_in_the_test_data() {
    let forward = serial_sum(1, 128, 0..8);
    let backward = serial_sum(1, 128, (0..8).rev());
    assert_ne!(bits(&forward), bits(&backward));
}

#[test]
fn gathering_shows_uneven_slices_in_rank_order() {
    for n_ranks in [1, 2, 5, 8] {
        let n_floats = |rank_idx: usize| (rank_idx * 37 + 5) % 11 * 10;
        let mut pool = scripted(config(n_ranks, 100));
        let gather = script(move |seat| {
            let mine = slice(0, seat.rank.idx(), n_floats(seat.rank.idx()));
            let mut all = Vec::new();
            seat.communicator.all_gather(&mine, &mut |rank, floats| {
                all.push(rank.idx() as f32);
                all.extend_from_slice(floats);
            })?;
            Ok(all)
        });
        let mut expected = Vec::new();
        for rank_idx in 0..n_ranks {
            expected.push(rank_idx as f32);
            expected.extend(slice(0, rank_idx, n_floats(rank_idx)));
        }
        let replies = pool.broadcast(gather).expect("nothing fails");
        assert_eq!(replies, vec![expected; n_ranks]);
    }
}

#[test]
fn what_is_no_number_passes_through() {
    for n_floats in [4, 8196] {
        let mut pool = scripted(config(2, n_floats));
        let replies = pool
            .broadcast(script(move |seat| {
                let first = seat.rank.idx() == 0;
                let four = if first {
                    [f32::NAN, f32::INFINITY, f32::INFINITY, -0.0]
                } else {
                    [1.0, f32::NEG_INFINITY, 1.0, -0.0]
                };
                let mut data: Vec<f32> = four.into_iter().cycle().take(n_floats).collect();
                seat.communicator.all_reduce_sum(&mut data)?;
                Ok(data)
            }))
            .expect("nothing fails");
        for reply in replies {
            for four in reply.chunks(4) {
                assert!(four[0].is_nan() && four[1].is_nan(), "{four:?}");
                assert_eq!(bits(&four[2..]), bits(&[f32::INFINITY, -0.0]));
            }
        }
    }
}

#[test]
fn the_greatest_is_found_and_what_is_no_number_stays() {
    let mut pool = scripted(config(3, 5));
    let replies = pool.broadcast(script(|seat| {
        let mut data = match seat.rank.idx() {
            0 => [1.0, f32::NAN, -3.0, 0.0, -0.0],
            1 => [5.0, 2.0, -2.0, 0.0, 0.0],
            _ => [2.0, 7.0, -4.0, f32::NAN, 0.0],
        };
        seat.communicator.all_reduce_max(&mut data)?;
        Ok(data.to_vec())
    }));
    for reply in replies.expect("nothing fails") {
        assert_eq!((reply[0], reply[2]), (5.0, -2.0));
        assert!(reply[1].is_nan() && reply[3].is_nan(), "{reply:?}");
        assert_eq!(reply[4].to_bits(), (-0f32).to_bits(), "all ranks keep the first rank's zero");
    }
}

/// One random collective, the same on all ranks, checked on the spot.
fn random_collective(seat: &mut Seat, turn: u64) -> Result<(), CollectiveError> {
    let mut random = Random(SEED.wrapping_mul(1 << 32) ^ turn);
    let n_ranks = seat.world.n_ranks();
    let n_floats = match random.below(16) {
        0 => 2000 + random.below(1000),
        _ => random.below(70),
    };
    let kind = random.below(4);
    // Ranks come late at random, each at its own collectives.
    if Random(turn ^ ((seat.rank.idx() as u64) << 40)).below(8) == 0 {
        std::thread::yield_now();
    }
    let mut data = slice(turn, seat.rank.idx(), n_floats);
    if kind == 0 {
        data.truncate(n_floats.saturating_sub(seat.rank.idx()));
        let mut n_seen = 0;
        seat.communicator.all_gather(&data, &mut |rank, floats| {
            let expected = slice(turn, rank.idx(), n_floats.saturating_sub(rank.idx()));
            assert!(floats == expected, "seed {SEED}, collective {turn}, slice of rank {rank}");
            n_seen += 1;
        })?;
        assert_eq!(n_seen, n_ranks);
    } else if kind == 1 {
        seat.communicator.all_reduce_max(&mut data)?;
        let mut expected = slice(turn, 0, n_floats);
        for rank_idx in 1..n_ranks {
            let theirs = slice(turn, rank_idx, n_floats);
            expected.iter_mut().zip(theirs).for_each(|(a, b)| *a = if b > *a { b } else { *a });
        }
        assert!(bits(&data) == bits(&expected), "seed {SEED}, collective {turn}");
    } else {
        seat.communicator.all_reduce_sum(&mut data)?;
        let expected = serial_sum(turn, n_floats, 0..n_ranks);
        assert!(bits(&data) == bits(&expected), "seed {SEED}, collective {turn}");
    }
    Ok(())
}

#[test]
fn ten_thousand_collectives_follow_each_other_within_commands() {
    let mut pool = scripted(config(8, 3000));
    let mut random = Random(SEED);
    let mut first = 0;
    while first < 10_000 {
        // Commands with none, odd and even numbers of collectives, up to long runs of them.
        let n = if random.below(4) == 0 { random.below(900) } else { random.below(4) } as u64;
        pool.broadcast(script(move |seat| {
            (first..first + n).try_for_each(|turn| random_collective(seat, turn))?;
            Ok(Vec::new())
        }))
        .expect("all ranks agree");
        first += n;
    }
}

/// Runs a script that must fail for a disagreement; every rank's call.
fn mismatch(n_ranks: usize, run: fn(&mut Seat) -> Answer) -> Vec<Call> {
    let mut pool = scripted(config(n_ranks, 9000));
    let error = pool.broadcast(script(run)).expect_err("the ranks disagree");
    match collective_error(&error) {
        CollectiveError::Mismatch { calls } => calls.clone(),
        other => panic!("{other}"),
    }
}

fn collective_error(error: &RankError) -> &CollectiveError {
    let RankCause::Failed { source } = &error.cause else { panic!("{error}") };
    let Some(Failure::Collective(error)) = source.downcast_ref() else { panic!("{source}") };
    error
}

#[test]
fn differing_lengths_are_a_mismatch() {
    let calls = mismatch(3, |seat| {
        // Rank 1 would sum by shares, the others directly.
        let n_floats = if seat.rank.idx() == 1 { 9000 } else { 10 };
        let mut data = vec![1.0; n_floats];
        seat.communicator.all_reduce_sum(&mut data)?;
        Ok(data)
    });
    let sum = |n_floats| Call::AllReduceSum { n_floats };
    assert_eq!(calls, [sum(10), sum(9000), sum(10)]);
    assert_eq!(
        CollectiveError::Mismatch { calls }.to_string(),
        "the ranks disagree on a collective: rank 0: all_reduce_sum of 10 floats, \
         rank 1: all_reduce_sum of 9000 floats, rank 2: all_reduce_sum of 10 floats"
    );
}

#[test]
fn differing_kinds_are_a_mismatch() {
    let calls = mismatch(2, |seat| {
        let mut data = vec![1.0; 4];
        if seat.rank.idx() == 0 {
            seat.communicator.all_reduce_sum(&mut data)?;
        } else {
            seat.communicator.all_gather(&data, &mut |_, _| panic!("nothing was gathered"))?;
        }
        Ok(data)
    });
    assert_eq!(calls, [Call::AllReduceSum { n_floats: 4 }, Call::AllGather { n_floats: 4 }]);
}

#[test]
fn a_collective_too_many_is_a_mismatch() {
    let calls = mismatch(2, |seat| {
        let mut data = vec![1.0; 4];
        for _ in 0..1 + seat.rank.idx() {
            seat.communicator.all_reduce_sum(&mut data)?;
        }
        Ok(data)
    });
    assert_eq!(calls, [Call::Return, Call::AllReduceSum { n_floats: 4 }]);
}

#[test]
fn a_disagreement_is_not_forgotten() {
    let mut pool = scripted(config(2, 8));
    let replies = pool.broadcast(script(|seat| {
        let mut data = vec![1.0; 1 + seat.rank.idx()];
        let first = seat.communicator.all_reduce_sum(&mut data).expect_err("lengths differ");
        let second = seat.communicator.all_reduce_sum(&mut [1.0]).expect_err("it has failed");
        assert_eq!(first, second);
        Ok(Vec::new())
    }));
    assert!(replies.is_ok(), "{replies:?}");
}

#[test]
fn a_slice_beyond_the_bound_is_refused() {
    let mut pool = scripted(config(2, 8));
    let error = pool
        .broadcast(script(|seat| {
            let mut data = vec![1.0; 9];
            seat.communicator.all_reduce_sum(&mut data)?;
            Ok(data)
        }))
        .expect_err("the slice is too long");
    let call = Call::AllReduceSum { n_floats: 9 };
    assert_eq!(collective_error(&error), &CollectiveError::TooLong { call, n_floats_max: 8 });
}

#[test]
fn a_rank_knows_its_seat() {
    for n_ranks in [1, 4] {
        let mut pool = scripted(config(n_ranks, 1));
        let replies = pool
            .broadcast(script(|seat| {
                assert_eq!(seat.communicator.rank(), seat.rank);
                assert_eq!(seat.communicator.world(), seat.world);
                Ok(vec![seat.rank.idx() as f32, seat.world.n_ranks() as f32])
            }))
            .expect("nothing fails");
        let seat = |rank_idx| vec![rank_idx as f32, n_ranks as f32];
        assert_eq!(replies, (0..n_ranks).map(seat).collect::<Vec<_>>());
        assert_eq!(pool.world(), World::new(n_ranks));
    }
}
