//! Checkpoint directories for tests: made, read back, tampered with, and removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Map, Value};
use weights::presets::preset;
use weights::synthetic::{SyntheticConfig, SyntheticFormat, write_synthetic};
use weights::{Checkpoint, LoadError, ModelSpec};

/// A directory of a test's own, removed with the value.
pub(crate) struct TestDir(PathBuf);

impl TestDir {
    /// An empty one.
    pub(crate) fn new() -> TestDir {
        static N_MADE: AtomicUsize = AtomicUsize::new(0);
        let n_made = N_MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("weights-{}-{n_made}", std::process::id());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&dir).unwrap();
        TestDir(dir)
    }

    /// One that holds a synthetic checkpoint.
    pub(crate) fn synthetic(spec: ModelSpec, format: SyntheticFormat, n_shards: usize) -> TestDir {
        let dir = TestDir::new();
        let config = SyntheticConfig { spec, format, n_shards, seed: 1 };
        write_synthetic(dir.path(), &config, &mut |_, _| {}).unwrap();
        dir
    }

    /// One that holds the tiny model.
    pub(crate) fn tiny(format: SyntheticFormat, n_shards: usize) -> TestDir {
        TestDir::synthetic(preset("tiny").unwrap(), format, n_shards)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn open(&self) -> Result<Checkpoint, LoadError> {
        Checkpoint::open(self.path())
    }

    /// Changes a JSON file.
    pub(crate) fn edit_json(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let path = self.path().join(file);
        let mut root = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut root);
        fs::write(path, root.to_string()).unwrap();
    }

    /// Takes a shard apart and writes it anew.
    pub(crate) fn edit_shard(&self, file: &str, edit: impl FnOnce(&mut Vec<StoredTensor>)) {
        let path = self.path().join(file);
        let mut tensors = read_shard(&fs::read(&path).unwrap());
        edit(&mut tensors);
        fs::write(path, write_shard(&tensors)).unwrap();
    }

    /// Changes the text of a shard's header and leaves the data as it is.
    pub(crate) fn edit_header(&self, file: &str, edit: impl FnOnce(String) -> String) {
        let path = self.path().join(file);
        let bytes = fs::read(&path).unwrap();
        let (header, data) = split(&bytes);
        let header = edit(String::from_utf8(header.to_vec()).unwrap());
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header.as_bytes());
        out.extend(data);
        fs::write(path, out).unwrap();
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        // A directory that stays behind is no reason to hide a test's own failure.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A tensor by itself.
#[derive(Clone, Debug)]
pub(crate) struct StoredTensor {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// The tensor of that name.
pub(crate) fn find<'a>(tensors: &'a mut [StoredTensor], name: &str) -> &'a mut StoredTensor {
    tensors.iter_mut().find(|tensor| tensor.name == name).expect(name)
}

/// The tensors of a safetensors file, by a reader of the tests' own.
pub(crate) fn read_shard(bytes: &[u8]) -> Vec<StoredTensor> {
    let (header, data) = split(bytes);
    let header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    let read = |(name, entry): (String, Value)| {
        let offsets: [usize; 2] = serde_json::from_value(entry["data_offsets"].clone()).unwrap();
        StoredTensor {
            name,
            dtype: entry["dtype"].as_str().unwrap().to_owned(),
            shape: serde_json::from_value(entry["shape"].clone()).unwrap(),
            bytes: data[offsets[0]..offsets[1]].to_vec(),
        }
    };
    tensors.map(read).collect()
}

fn write_shard(tensors: &[StoredTensor]) -> Vec<u8> {
    let mut header = Map::new();
    let mut data: Vec<u8> = Vec::new();
    for tensor in tensors {
        let begin = data.len();
        data.extend(&tensor.bytes);
        let entry = serde_json::json!({
            "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()],
        });
        header.insert(tensor.name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let n_header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8..].split_at(n_header)
}
