//! Counters as a table for people.

use std::fmt::Write;

use super::file::Report;
use super::{DeviceCounters, KernelCounters};

/// Kernels that are shown; the rest is one line.
const N_KERNELS_SHOWN: usize = 20;

/// What all processes of a command did, on all devices together.
pub fn summary(reports: &[Report]) -> String {
    let Some(first) = reports.first() else {
        return "virtual node: nothing was done on any device\n".to_owned();
    };
    let mut total = DeviceCounters::default();
    for report in reports {
        total += &report.counters.total();
    }
    let n_used = reports.iter().map(|report| report.counters.devices.len()).max().unwrap_or(0);
    let all = total.all_kernels();
    let mut text = String::new();
    let mut line = |args: std::fmt::Arguments<'_>| {
        writeln!(text, "{args}").expect("a string takes everything");
    };
    line(format_args!(
        "virtual node: {} mode, {n_used} of {} devices used; sums over all of them",
        first.mode, first.n_devices
    ));
    line(format_args!(
        "  {} kernel launches · {} graph launches of {} nodes · {} host syncs",
        grouped(all.n_launches),
        grouped(total.graphs.n_launches),
        grouped(total.graphs.n_nodes),
        grouped(total.n_host_syncs)
    ));
    let collectives: Vec<String> = total
        .collectives
        .iter()
        .map(|(name, moved)| format!("{name} {} × ({})", grouped(moved.n), bytes(moved.bytes)))
        .collect();
    let copies: Vec<String> = total
        .copies
        .iter()
        .map(|(kind, moved)| format!("{kind} {} × ({})", grouped(moved.n), bytes(moved.bytes)))
        .collect();
    for (what, list) in [("collectives", collectives), ("copies", copies)] {
        if !list.is_empty() {
            line(format_args!("  {what}: {}", list.join(", ")));
        }
    }
    kernels(&total, &all, &mut line);
    text
}

/// The kernels that moved most; those that moved nothing by launches.
fn kernels(
    total: &DeviceCounters,
    all: &KernelCounters,
    line: &mut impl FnMut(std::fmt::Arguments<'_>),
) {
    let mut kernels: Vec<(&String, &KernelCounters)> = total.kernels.iter().collect();
    kernels.sort_by_key(|(name, kernel)| {
        (std::cmp::Reverse((moved(kernel), kernel.n_launches)), (*name).clone())
    });
    if kernels.is_empty() {
        return;
    }
    let width = kernels.iter().map(|(name, _)| name.len()).max().unwrap_or(0).clamp(6, 60);
    let head = ["launches", "read", "written", "share", "flops", "conflicts"];
    let [launches, read, written, share, flops, conflicts] = head;
    line(format_args!(
        "  {:width$} {launches:>10} {read:>10} {written:>10} {share:>6} {flops:>9} {conflicts:>10}",
        "kernel"
    ));
    let mut row = |name: &str, kernel: &KernelCounters| {
        let share = 100.0 * moved(kernel) as f64 / moved(all).max(1) as f64;
        line(format_args!(
            "  {name:width$} {:>10} {:>10} {:>10} {share:>5.1}% {:>9} {:>10}",
            grouped(kernel.n_launches),
            bytes(kernel.bytes_read),
            bytes(kernel.bytes_written),
            scaled(kernel.flops.total(), ""),
            grouped(kernel.n_bank_conflicts)
        ));
    };
    for (name, kernel) in kernels.iter().take(N_KERNELS_SHOWN) {
        row(name, kernel);
    }
    if kernels.len() > N_KERNELS_SHOWN {
        let mut rest = KernelCounters::default();
        for (_, kernel) in &kernels[N_KERNELS_SHOWN..] {
            rest += **kernel;
        }
        row(&format!("{} more", kernels.len() - N_KERNELS_SHOWN), &rest);
    }
    row("all", all);
}

fn moved(kernel: &KernelCounters) -> u64 {
    kernel.bytes_read + kernel.bytes_written
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn bytes(number: u64) -> String {
    scaled(number, "B")
}

/// Three digits and a prefix of a thousand's power.
fn scaled(number: u64, unit: &str) -> String {
    let mut value = number as f64;
    let mut prefixes = ["", "k", "M", "G", "T", "P"].into_iter();
    let mut prefix = prefixes.next().unwrap_or_default();
    while value >= 999.5 {
        let Some(next) = prefixes.next() else { break };
        (value, prefix) = (value / 1000.0, next);
    }
    let n_decimals = match value {
        _ if prefix.is_empty() => 0,
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.n_decimals$} {prefix}{unit}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::{CopyKind, Counters, Flops, Transfers};
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
        assert_eq!(
            [0, 999, 1000, 31_670_000_000].map(bytes),
            ["0 B", "999 B", "1.00 kB", "31.7 GB"]
        );
        assert_eq!(scaled(999_600, ""), "1.00 M");
    }

    #[test]
    fn the_largest_come_first_and_the_rest_is_one_line() {
        let mut device = DeviceCounters::default();
        for idx in 0..30u64 {
            let bytes_read = 1000 * (idx + 1);
            let kernel = KernelCounters { n_launches: 2, bytes_read, ..Default::default() };
            device.kernels.insert(format!("kernel_{idx}"), kernel);
        }
        device.kernels.get_mut("kernel_3").unwrap().flops = Flops { f32: 5, ..Flops::default() };
        device.copies.insert(CopyKind::HostToDevice, Transfers { n: 3, bytes: 4096 });
        device.collectives.insert("all_reduce".to_owned(), Transfers { n: 145, bytes: 145 << 15 });
        let counters = Counters { devices: vec![device] };
        let report = Report { mode: "dry".to_owned(), n_devices: 8, counters };
        let text = summary(&[report]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("dry mode, 1 of 8 devices"), "{text}");
        assert!(lines[1].contains("60 kernel launches"), "{text}");
        assert!(lines[2].contains("all_reduce 145 × (4.75 MB)"), "{text}");
        assert!(lines[3].contains("host to device 3 × (4.10 kB)"), "{text}");
        assert!(lines[5].contains("kernel_29"), "{text}");
        assert!(lines[lines.len() - 2].contains("10 more"), "{text}");
        assert!(lines[lines.len() - 1].contains("465 kB"), "{text}");
        assert_eq!(lines.len(), 5 + N_KERNELS_SHOWN + 2);
    }

    #[test]
    fn nothing_is_said_to_be_nothing() {
        assert!(summary(&[]).contains("nothing was done"));
    }
}
