//! The table's code on the virtual node, so that it works on the day it is needed. Times mean
//! nothing here and are not looked at.

use gpu_smoke::node;
use gpu_smoke::table::{Shape, attention};

#[test]
fn the_table_runs_where_times_mean_nothing() {
    let line = attention(Shape { n_rows: 2, n_positions: 300 }, 2).expect("it runs");
    assert_eq!(line.n_bytes, 2 * 2 * 19 * 16 * 128);
    assert!(line.to_string().contains("batch   2 x    300"), "{line}");
}

#[test]
fn the_virtual_node_is_not_taken_for_a_real_one() {
    let error = node::open_real().expect_err("there is no GPU here");
    assert!(node::is_virtual().expect("maps are readable"), "{error:#}");
    assert!(format!("{error:#}").contains("virtual node"), "{error:#}");
}
