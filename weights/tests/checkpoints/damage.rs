//! Files that are holes, that shrink while they are mapped, and a survey that names all damage.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use sha2::{Digest, Sha256};
use weights::presets::preset;
use weights::synthetic::{SyntheticConfig, SyntheticFormat, write_sparse};
use weights::verify::{Half, Place, Survey};
use weights::{Checkpoint, MixerWeights};

use crate::common::{TestDir, find};

const SINGLE: &str = "model.safetensors";
const FORMATS: [SyntheticFormat; 3] =
    [SyntheticFormat::Bf16, SyntheticFormat::ModelOptFp8, SyntheticFormat::Fp8Dynamic];

/// All that a survey finds, values included.
fn found(dir: &TestDir) -> Vec<(Place, String)> {
    let mut survey = Survey::open(dir.path());
    let values = survey.tensors.iter().filter_map(|tensor| survey.check_tensor(tensor));
    let files = survey.checksums.iter().filter_map(|sum| survey.check_file(sum, &|_| {}));
    let late: Vec<_> = values.chain(files).collect();
    survey.problems.extend(late);
    survey.problems.into_iter().map(|p| (p.place, p.error.to_string())).collect()
}

/// Exactly one thing is wrong, there, and it is told with these words.
#[track_caller]
fn check_found(dir: &TestDir, place: Place, words: &[&str]) {
    let found = found(dir);
    let [(found_place, message)] = &found[..] else { panic!("not one problem: {found:?}") };
    assert_eq!(*found_place, place, "{message}");
    for words in words {
        assert!(message.contains(words), "{words:?} is not in: {message}");
    }
}

#[test]
fn whole_checkpoints_of_every_format_are_sound() {
    for format in FORMATS {
        for n_shards in [1, 3] {
            assert_eq!(found(&TestDir::tiny(format, n_shards)), [], "{format}, {n_shards}");
        }
    }
}

#[test]
fn values_that_are_no_numbers_are_named() {
    let up = "model.layers.1.mlp.up_proj";
    let place = Place::Block(1, Half::Ffn);
    for (format, nan) in [
        (SyntheticFormat::Bf16, vec![0xc0, 0x7f]),
        (SyntheticFormat::F16, vec![0x00, 0xfc]),
        (SyntheticFormat::F32, vec![0, 0, 0xc0, 0xff]),
        (SyntheticFormat::ModelOptFp8, vec![0xff]),
    ] {
        let dir = TestDir::tiny(format, 1);
        dir.edit_shard(SINGLE, |tensors| {
            let bytes = &mut find(tensors, &format!("{up}.weight")).bytes;
            let at = 5000 * nan.len();
            bytes[at..at + nan.len()].copy_from_slice(&nan);
        });
        check_found(&dir, place.clone(), &[&format!("{up}.weight"), "at element 5000"]);
    }
    let dir = TestDir::tiny(SyntheticFormat::ModelOptFp8, 1);
    dir.edit_shard(SINGLE, |tensors| {
        find(tensors, &format!("{up}.weight_scale")).bytes = 3e30f32.to_le_bytes().to_vec();
    });
    check_found(&dir, place.clone(), &[&format!("{up}.weight_scale"), "no calibration"]);
    dir.edit_shard(SINGLE, |tensors| {
        find(tensors, &format!("{up}.weight_scale")).bytes = f32::NAN.to_le_bytes().to_vec();
    });
    let message = format!("{:?}", found(&dir));
    assert!(message.contains("is NaN") && message.contains("Block(1, Ffn)"), "{message}");
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let dir = TestDir::tiny(SyntheticFormat::ModelOptFp8, 1);
    dir.edit_shard(SINGLE, |tensors| {
        tensors.retain(|tensor| tensor.name != "model.layers.0.self_attn.k_proj.weight");
        find(tensors, "model.layers.7.mlp.down_proj.weight").shape.reverse();
        find(tensors, "model.norm.weight").name = "model.morn.weight".to_owned();
    });
    let found = found(&dir);
    let places: Vec<&Place> = found.iter().map(|(place, _)| place).collect();
    for place in [Place::Block(0, Half::Mixer), Place::Block(7, Half::Ffn), Place::Ends] {
        assert!(places.contains(&&place), "{place:?}: {found:?}");
    }
    let all = format!("{found:?}");
    for words in ["k_proj.weight` is missing", "down_proj.weight` in", "model.norm.weight` is"] {
        assert!(all.contains(words), "{words}: {all}");
    }
}

#[test]
fn files_that_are_missing_cut_off_or_not_as_published_are_named() {
    let second = "model-00002-of-00003.safetensors";
    let dir = TestDir::tiny(SyntheticFormat::Bf16, 3);
    let sum = |file: &str| {
        let digest = Sha256::digest(fs::read(dir.path().join(file)).unwrap());
        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let lines = format!("{}  {second}\n{} *config.json\n", sum(second), sum("config.json"));
    fs::write(dir.path().join("SHA256SUMS"), &lines).unwrap();
    assert_eq!(found(&dir), []);
    // A bit that turns a number into another one: only the checksum can tell.
    let path = dir.path().join(second);
    let sound = fs::read(&path).unwrap();
    let mut bytes = sound.clone();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, &bytes).unwrap();
    check_found(&dir, Place::Whole, &[second, "SHA256SUMS says"]);
    fs::write(&path, &sound[..sound.len() - 1]).unwrap();
    let cut = format!("{:?}", found(&dir));
    assert!(cut.contains("truncated?") && cut.contains(second), "{cut}");
    fs::remove_file(&path).unwrap();
    let missing = format!("{:?}", found(&dir));
    assert!(missing.contains(&format!("holds no {second}")), "{missing}");
    fs::write(&path, &sound).unwrap();
    fs::write(dir.path().join("SHA256SUMS"), format!("{lines}nonsense\n{}  ../x\n", sum(second)))
        .unwrap();
    let lines = format!("{:?}", found(&dir));
    assert!(lines.contains("line 3") && lines.contains("not a plain file name"), "{lines}");
}

#[test]
fn a_file_that_shrinks_while_it_is_mapped_is_an_error_that_names_it() {
    let dir = TestDir::tiny(SyntheticFormat::F32, 1);
    let checkpoint = dir.open().unwrap();
    checkpoint.check_intact().unwrap();
    let path = dir.path().join(SINGLE);
    // The last tensors are beyond the first page.
    OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let weights = checkpoint.load_rank(0, 1);
    let message = match weights {
        Ok(weights) => {
            let last = weights.blocks.last().unwrap();
            let Some(MixerWeights::Attention(attention)) = &last.mixer else { panic!("attention") };
            let matrix = &attention.q.matrix;
            // Zeroes, and no crash.
            assert!((0..matrix.n_rows).all(|row| matrix.row(row).iter().all(|&byte| byte == 0)));
            checkpoint.check_intact().unwrap_err().to_string()
        }
        Err(error) => error.to_string(),
    };
    assert!(message.contains(SINGLE) && message.contains("shrank"), "{message}");
    drop(checkpoint);
    // Another file's mapping is none of it.
    TestDir::tiny(SyntheticFormat::F32, 1).open().unwrap().check_intact().unwrap();
}

#[test]
fn links_in_a_circle_and_names_that_lead_outside_are_refused() {
    let dir = TestDir::tiny(SyntheticFormat::Bf16, 1);
    let path = dir.path().join(SINGLE);
    fs::remove_file(&path).unwrap();
    symlink(SINGLE, &path).unwrap();
    let message = dir.open().unwrap_err().to_string();
    assert!(message.contains(SINGLE) && message.contains("cannot read"), "{message}");
    let dir = TestDir::tiny(SyntheticFormat::Bf16, 3);
    let index = dir.path().join("model.safetensors.index.json");
    let sound = fs::read_to_string(&index).unwrap();
    for name in ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""] {
        let text = sound.replace("model-00002-of-00003.safetensors", name);
        fs::write(&index, text).unwrap();
        let message = dir.open().unwrap_err().to_string();
        assert!(message.contains("not a plain file name"), "{name}: {message}");
    }
}

fn sparse(dir: &Path, name: &str, format: SyntheticFormat) {
    let spec = preset(name).unwrap();
    let config = SyntheticConfig { spec, format, n_shards: 60, seed: 1 };
    write_sparse(dir, &config, &mut |_, _| {}).unwrap();
}

/// LN-Ultra at its true size: opened, cut for eight ranks and looked over, on hardly any disk.
#[test]
fn ultra_as_holes_is_whole_sound_and_takes_no_room() {
    let dir = TestDir::new();
    sparse(dir.path(), "ultra-253b", SyntheticFormat::ModelOptFp8);
    let files = || fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().metadata().unwrap());
    let n_bytes: u64 = files().map(|metadata| metadata.len()).sum();
    let n_taken: u64 = files().map(|metadata| metadata.blocks() * 512).sum();
    assert!(n_bytes > 257_000_000_000, "{n_bytes}");
    assert!(n_taken < 64 << 20, "{n_taken} bytes of the disk");
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    for rank_idx in 0..8 {
        let weights = checkpoint.load_rank(rank_idx, 8).unwrap();
        let last = weights.blocks.last().unwrap();
        assert_eq!(last.block_idx, 161);
        assert!(weights.head.matrix.is_hole() && weights.final_norm.iter().any(|&x| x != 0.0));
    }
    assert_eq!(found(&dir), []);
}

#[test]
fn only_what_no_disk_holds_is_a_hole() {
    let dir = TestDir::new();
    let config = SyntheticConfig {
        spec: preset("bench-0.6b").unwrap(),
        format: SyntheticFormat::Bf16,
        n_shards: 1,
        seed: 1,
    };
    write_sparse(dir.path(), &config, &mut |_, _| {}).unwrap();
    let embedding = |dir: &TestDir| dir.open().unwrap().load_rank(0, 1).unwrap().embedding;
    assert!(embedding(&dir).is_hole());
    // A byte in the midst of it.
    let offset = { embedding(&dir).offset } as u64 + (32 << 20);
    let mut file = OpenOptions::new().write(true).open(dir.path().join(SINGLE)).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset)).unwrap();
    file.write_all(&[1]).unwrap();
    drop(file);
    assert!(!embedding(&dir).is_hole());
    assert!(
        !TestDir::tiny(SyntheticFormat::Bf16, 1)
            .open()
            .unwrap()
            .load_rank(0, 1)
            .unwrap()
            .embedding
            .is_hole()
    );
}
