//! Changes of text in the committed kernels.

use std::path::Path;

use crate::faults::{Change, Fault};

/// The PTX that lies beside a unit's source.
pub(crate) fn committed(unit: &str) -> String {
    // Units of a family that are compiled apart.
    let folder = unit.strip_suffix("_prefill").or(unit.strip_suffix("_two_shot")).unwrap_or(unit);
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../engine/src/kernels");
    let path = kernels.join(folder).join(format!("{unit}.ptx"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text with the fault in its kernel; an error where the place is not there.
pub(crate) fn planted(fault: &Fault, ptx: &str) -> Result<String, String> {
    let entry = format!(".entry {}(", fault.kernel);
    let begin = ptx.find(&entry).ok_or("there is no such kernel")?;
    let end = begin + ptx[begin..].find("\n}").ok_or("the kernel has no end")?;
    let body = change(&ptx[begin..end], &fault.change)?;
    Ok([&ptx[..begin], &body, &ptx[end..]].concat())
}

fn change(kernel: &str, change: &Change) -> Result<String, String> {
    let (after, line, nth) = match *change {
        Change::Remove { after, line, nth } => (after, line, nth),
        Change::Replace { after, line, .. } => (after, line, 0),
        Change::Swap(a, b) => return swapped(kernel, a, b),
    };
    let mut lines: Vec<String> = kernel.lines().map(str::to_owned).collect();
    let begin = lines.iter().position(|line| line.contains(after)).ok_or("no such place")?;
    // The place itself is not after it.
    let begin = begin + usize::from(!after.is_empty());
    let mut places = (begin..lines.len()).filter(|&i| lines[i].contains(line));
    let place = places.nth(nth).ok_or(format!("no {line:?} number {nth}: compiled anew?"))?;
    lines[place] = match *change {
        Change::Replace { from, to, .. } if lines[place].contains(from) => {
            lines[place].replacen(from, to, 1)
        }
        Change::Replace { from, .. } => return Err(format!("no {from:?} in {:?}", lines[place])),
        _ => String::new(),
    };
    Ok(lines.join("\n"))
}

/// Every `a` for `b` and the reverse.
fn swapped(kernel: &str, a: &str, b: &str) -> Result<String, String> {
    if !kernel.contains(a) || !kernel.contains(b) {
        return Err(format!("no {a:?} or no {b:?}: compiled anew?"));
    }
    Ok(kernel.replace(a, "\u{0}").replace(b, a).replace('\u{0}', b))
}
