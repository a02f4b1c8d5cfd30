//! What a merge of pages may show, with rows that are their own ids.

use pim_core::shard::ShardId;
use uuid::Uuid;

use super::{Next, merge};

fn merged(shown: &[(u16, &[u128])], bound: usize, moving: &[u128]) -> (Vec<u128>, Next) {
    let shown = shown.iter().map(|(shard, rows)| (ShardId(*shard), rows.to_vec())).collect();
    // Shard 0 has copies of what moved away from it.
    let is_home = |shard: ShardId, row: &u128| shard != ShardId(0) || !moving.contains(row);
    merge(shown, bound, |row| Uuid::from_u128(*row), is_home)
}

fn after(id: u128) -> Next {
    Next::After(Uuid::from_u128(id))
}

#[test]
fn the_smallest_rows_come_first_and_the_rest_later() {
    assert_eq!(merged(&[(0, &[1, 4]), (1, &[2, 3])], 2, &[]), (vec![1, 2], after(2)));
    assert_eq!(merged(&[(0, &[4]), (1, &[])], 2, &[]), (vec![4], Next::End));
    assert_eq!(merged(&[(0, &[1, 2]), (1, &[])], 2, &[]), (vec![1, 2], after(2)), "a full page may not be the last");
    assert_eq!(merged(&[], 2, &[]), (vec![], Next::End));
}

#[test]
fn a_shard_full_of_copies_hides_nothing_of_its_own() {
    // Behind 1 and 2, which moved away, shard 0 may still have a 3: 5 must wait.
    assert_eq!(merged(&[(0, &[1, 2]), (1, &[5])], 2, &[1, 2]), (vec![], after(2)));
    assert_eq!(merged(&[(0, &[3]), (1, &[5])], 2, &[1, 2]), (vec![3, 5], Next::End));
}

#[test]
fn a_row_that_two_shards_have_is_shown_by_its_owner() {
    assert_eq!(merged(&[(0, &[1, 7]), (1, &[1])], 5, &[1]), (vec![1, 7], Next::End));
}
