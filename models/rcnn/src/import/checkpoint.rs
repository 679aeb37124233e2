//! Tensors by name out of the files that people have: safetensors, torch's `.pth` in both of its formats, pickled numpy arrays
//! (`.pkl`). Every size is checked against the bytes that are there; nothing of a file is executed.

use super::pickle::{Id, Node, Pickle};
use crate::RcnnError;
use candle_core::{Device, Tensor};
use safetensors::tensor::Dtype;
use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read};
use std::path::Path;

/// The largest checkpoint file, bytes.
const MAX_BYTES: u64 = 8 << 30;
/// Keys under which training scripts keep the state dictionary: Detectron2 and torchvision's references, then Lightning and mmcv.
const STATE_KEYS: [&str; 3] = ["model", "state_dict", "blobs"];
/// Prefixes of a state dictionary that was saved inside a wrapper: `DataParallel`, `torch.compile`, timm.
const WRAPPERS: [&str; 3] = ["module.", "_orig_mod.", "model."];

/// Floating-point tensors by name, as f32. Others, such as `num_batches_tracked`, are left out.
///
/// # Errors
/// [`RcnnError::Io`]; [`RcnnError::Weights`] names what is wrong and where.
pub fn read_checkpoint(path: &Path) -> Result<BTreeMap<String, Tensor>, RcnnError> {
    let refuse = |tensor: &str, message: String| RcnnError::Weights { path: path.to_owned(), tensor: tensor.to_owned(), message };
    let io = |source| RcnnError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(refuse("", format!("larger than {MAX_BYTES} bytes")));
    }
    let arrays = match () {
        () if bytes.starts_with(b"PK") => zipped(&bytes),
        () if is_pickle(&bytes) => pickled(&bytes),
        () => safetensors(&bytes),
    };
    let mut tensors = BTreeMap::new();
    for (name, array) in arrays.map_err(|Refused { tensor, message }| refuse(&tensor, message))? {
        if let Some(value) = array.values.iter().find(|value| !value.is_finite()) {
            return Err(refuse(&name, format!("it holds {value}: a training that went wrong")));
        }
        tensors.insert(name, Tensor::from_vec(array.values, array.shape, &Device::Cpu)?);
    }
    let wrapper = WRAPPERS.iter().find(|prefix| !tensors.is_empty() && tensors.keys().all(|name| name.starts_with(**prefix)));
    if let Some(prefix) = wrapper {
        tensors = tensors.into_iter().map(|(name, tensor)| (name[prefix.len()..].to_owned(), tensor)).collect();
    }
    if tensors.is_empty() {
        return Err(refuse("", "the file holds no tensor".to_owned()));
    }
    Ok(tensors)
}

/// Values in row-major order.
struct Array {
    shape: Vec<usize>,
    values: Vec<f32>,
}

type Arrays = Vec<(String, Array)>;

/// What is wrong, and with which tensor.
struct Refused {
    tensor: String,
    message: String,
}

impl From<String> for Refused {
    fn from(message: String) -> Self {
        Self { tensor: String::new(), message }
    }
}

/// Protocol 2 and later begin with its number; before that, a dictionary is all that a checkpoint can be.
fn is_pickle(bytes: &[u8]) -> bool {
    matches!(bytes, [0x80, 1..=5, ..] | [b'(', b'd', ..] | [b'}', ..])
}

fn safetensors(bytes: &[u8]) -> Result<Arrays, Refused> {
    let expected = "expected a safetensors file, torch's .pth, or a .pkl of numpy arrays";
    let file = safetensors::SafeTensors::deserialize(bytes).map_err(|e| format!("{expected}; as safetensors: {e}"))?;
    let mut arrays = Vec::new();
    for (name, view) in file.tensors() {
        let kind = match view.dtype() {
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::Brain,
            Dtype::F32 => Kind::Single,
            Dtype::F64 => Kind::Double,
            _ => continue,
        };
        arrays.push((name, Array { shape: view.shape().to_vec(), values: kind.decode(view.data(), false) }));
    }
    Ok(arrays)
}

/// A floating-point type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Half,
    Brain,
    Single,
    Double,
}

impl Kind {
    const fn width(self) -> usize {
        match self {
            Self::Half | Self::Brain => 2,
            Self::Single => 4,
            Self::Double => 8,
        }
    }

    fn decode(self, bytes: &[u8], big_endian: bool) -> Vec<f32> {
        let value = |bytes: &[u8]| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            if big_endian {
                word[..bytes.len()].reverse();
            }
            let bits = u64::from_le_bytes(word);
            match self {
                Self::Half => half::f16::from_bits(bits as u16).to_f32(),
                Self::Brain => half::bf16::from_bits(bits as u16).to_f32(),
                Self::Single => f32::from_bits(bits as u32),
                Self::Double => f64::from_bits(bits) as f32,
            }
        };
        bytes.chunks_exact(self.width()).map(value).collect()
    }
}

/// torch's storage type: `None` for one of whole numbers or truth values.
fn storage_kind(global: &str) -> Result<Option<Kind>, String> {
    match global {
        "torch.FloatStorage" => Ok(Some(Kind::Single)),
        "torch.DoubleStorage" => Ok(Some(Kind::Double)),
        "torch.HalfStorage" => Ok(Some(Kind::Half)),
        "torch.BFloat16Storage" => Ok(Some(Kind::Brain)),
        "torch.LongStorage" | "torch.IntStorage" | "torch.ShortStorage" | "torch.CharStorage" | "torch.ByteStorage"
        | "torch.BoolStorage" => Ok(None),
        other => Err(format!("a storage of type {other}")),
    }
}

/// `torch.save` since 1.6: a zip of `*/data.pkl` and one member per storage, stored without compression.
fn zipped(bytes: &[u8]) -> Result<Arrays, Refused> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| format!("cut off, or not a zip that torch wrote: {e}"))?;
    let is_index = |name: &std::borrow::Cow<'_, str>| name.ends_with("/data.pkl") || *name == "data.pkl";
    let index = archive.file_names().flatten().find(is_index).map(std::borrow::Cow::into_owned);
    let index = index.ok_or_else(|| "a zip without data.pkl: TorchScript or no checkpoint".to_owned())?;
    let root = index[..index.len() - "data.pkl".len()].to_owned();
    let mut member = |name: &str| -> Result<Vec<u8>, String> {
        let mut file = archive.by_name(name).map_err(|e| format!("{name}: {e}"))?;
        // A member cannot be larger than the file it is stored in: no decompression, no bomb.
        if file.compression() != zip::CompressionMethod::Stored || file.size() > bytes.len() as u64 {
            return Err(format!("{name} is compressed, which torch never does"));
        }
        let mut data = Vec::with_capacity(file.size() as usize);
        file.read_to_end(&mut data).map_err(|e| format!("{name}: {e}"))?;
        Ok(data)
    };
    if let Ok(order) = member(&format!("{root}byteorder"))
        && order != b"little"
    {
        return Err(format!("byte order {:?}, only little is read", String::from_utf8_lossy(&order)).into());
    }
    let (pickle, _) = Pickle::read(&member(&index)?)?;
    state(&pickle, bytes.len(), &mut |key| member(&format!("{root}data/{key}")))
}

/// torch's number that begins its format before 1.6, as `long` leaves it.
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// A `.pkl`, or `torch.save` before 1.6: magic, protocol, system, state dictionary, storage keys, then the storages.
fn pickled(bytes: &[u8]) -> Result<Arrays, Refused> {
    let (first, mut at) = Pickle::read(bytes)?;
    if *first.node(first.root()) != Node::Bytes(LEGACY_MAGIC.to_vec()) {
        return state(&first, bytes.len(), &mut |key| Err(format!("storage {key}: a plain pickle has none")));
    }
    let mut next = || -> Result<Pickle, String> {
        let (pickle, read) = Pickle::read(&bytes[at..])?;
        at += read;
        Ok(pickle)
    };
    let (_protocol, _system, dictionary, keys) = (next()?, next()?, next()?, next()?);
    let keys: Option<Vec<String>> =
        keys.items(keys.root()).and_then(|items| items.iter().map(|&key| keys.text(key).map(|text| text.into_owned())).collect());
    // The storages' sizes are in elements; their types are in the dictionary.
    let kinds = storages(&dictionary);
    let mut places = HashMap::new();
    for key in keys.ok_or_else(|| "the list of storages is missing".to_owned())? {
        let width = *kinds.get(&key).ok_or_else(|| format!("storage {key} is not used"))?;
        let header = bytes.get(at..at + 8).ok_or_else(|| format!("storage {key}: the file is cut off"))?;
        let count = header.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        let end = usize::try_from(count).ok().and_then(|count| count.checked_mul(width)).and_then(|length| length.checked_add(at + 8));
        let end = end.filter(|&end| end <= bytes.len()).ok_or_else(|| format!("storage {key}: the file is cut off"))?;
        places.insert(key, at + 8..end);
        at = end;
    }
    let storage = |key: &str| places.get(key).map(|place| bytes[place.clone()].to_vec()).ok_or_else(|| format!("storage {key} is missing"));
    state(&dictionary, bytes.len(), &mut { storage })
}

/// Bytes per element of every storage that a dictionary of torch's old format refers to.
fn storages(pickle: &Pickle) -> HashMap<String, usize> {
    let mut widths = HashMap::new();
    for node in pickle.nodes() {
        let Node::Persistent(reference) = node else { continue };
        if let Some([_, kind, key, ..]) = pickle.items(*reference)
            && let (Some(kind), Some(key)) = (pickle.global(*kind), pickle.text(*key))
        {
            let width = match kind {
                "torch.DoubleStorage" | "torch.LongStorage" => 8,
                "torch.FloatStorage" | "torch.IntStorage" => 4,
                "torch.HalfStorage" | "torch.BFloat16Storage" | "torch.ShortStorage" => 2,
                _ => 1,
            };
            widths.insert(key.into_owned(), width);
        }
    }
    widths
}

/// The arrays of the state dictionary: the pickle's root, or what it holds under one of [`STATE_KEYS`]. Together they have at most
/// `budget` elements, so that views of one storage cannot multiply it.
fn state(pickle: &Pickle, mut budget: usize, storage: &mut dyn FnMut(&str) -> Result<Vec<u8>, String>) -> Result<Arrays, Refused> {
    let root = pickle.root();
    let inner = STATE_KEYS.iter().find_map(|key| pickle.get(root, key).filter(|&id| pickle.entries(id).is_some()));
    let entries =
        pickle.entries(inner.unwrap_or(root)).ok_or_else(|| "expected a dictionary of tensors: save a model's state_dict()".to_owned())?;
    let mut reader = Reader { pickle, storage, loaded: None };
    let mut arrays = Vec::new();
    for &(key, value) in entries {
        let Some(name) = pickle.text(key) else { continue };
        if let Some(array) = reader.array(value).map_err(|message| Refused { tensor: name.clone().into_owned(), message })? {
            let left = budget.checked_sub(array.values.len());
            budget = left.ok_or_else(|| Refused {
                tensor: name.clone().into_owned(),
                message: "more elements than the file has bytes".to_owned(),
            })?;
            arrays.push((name.into_owned(), array));
        }
    }
    Ok(arrays)
}

struct Reader<'a> {
    pickle: &'a Pickle,
    storage: &'a mut dyn FnMut(&str) -> Result<Vec<u8>, String>,
    /// The storage read last: tensors that share one follow each other.
    loaded: Option<(String, Vec<f32>)>,
}

impl Reader<'_> {
    /// A tensor or numpy array; `None` for anything else.
    fn array(&mut self, id: Id) -> Result<Option<Array>, String> {
        let Some((callable, args)) = self.pickle.call(id) else { return Ok(None) };
        match callable {
            "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor" => self.tensor(args),
            "torch._utils._rebuild_parameter" => match args.first() {
                Some(&tensor) => self.array(tensor),
                None => Err("a parameter without a tensor".to_owned()),
            },
            "numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct" => self.numpy(id),
            "numpy.core.numeric._frombuffer" | "numpy._core.numeric._frombuffer" => self.buffer(args),
            _ => Ok(None),
        }
    }

    /// `(storage, offset, size, stride, …)`.
    fn tensor(&mut self, args: &[Id]) -> Result<Option<Array>, String> {
        let pickle = self.pickle;
        let [storage, offset, size, stride, ..] = args else { return Err("a tensor without storage, offset, size and stride".to_owned()) };
        let Node::Persistent(reference) = pickle.node(*storage) else { return Err("a tensor without a storage".to_owned()) };
        let Some([_, kind, key, ..]) = pickle.items(*reference) else { return Err("a storage without a type and key".to_owned()) };
        let (Some(kind), Some(key)) = (pickle.global(*kind), pickle.text(*key)) else {
            return Err("a storage without a type and key".to_owned());
        };
        let Some(kind) = storage_kind(kind)? else { return Ok(None) };
        let (Some(offset), Some(shape), Some(stride)) =
            (pickle.int(*offset).and_then(|v| usize::try_from(v).ok()), pickle.sizes(*size), pickle.sizes(*stride))
        else {
            return Err("offset, size or stride are not whole numbers".to_owned());
        };
        if self.loaded.as_ref().is_none_or(|(name, _)| *name != key) {
            let bytes = (self.storage)(&key)?;
            self.loaded = Some((key.clone().into_owned(), kind.decode(&bytes, false)));
        }
        let values = self.loaded.as_ref().map_or(&[][..], |(_, values)| values);
        Ok(Some(Array { values: strided(values, offset, &shape, &stride)?, shape }))
    }

    /// An `ndarray` by protocol 5: `(data, dtype, shape, order)`.
    fn buffer(&self, args: &[Id]) -> Result<Option<Array>, String> {
        let [data, dtype, shape, order] = args else { return Err("an array of an unknown version".to_owned()) };
        self.ndarray(*shape, *dtype, self.pickle.text(*order).as_deref() == Some("F"), *data)
    }

    /// State of an `ndarray`: `(version, shape, dtype, fortran order, data)`.
    fn numpy(&self, id: Id) -> Result<Option<Array>, String> {
        let pickle = self.pickle;
        let Node::Object { state: Some(state), .. } = pickle.node(id) else { return Err("an array without data".to_owned()) };
        let Some([_, shape, dtype, fortran, data]) = pickle.items(*state) else { return Err("an array of an unknown version".to_owned()) };
        self.ndarray(*shape, *dtype, pickle.int(*fortran) == Some(1), *data)
    }

    fn ndarray(&self, shape: Id, dtype: Id, fortran: bool, data: Id) -> Result<Option<Array>, String> {
        let pickle = self.pickle;
        let (Some(shape), Node::Bytes(data)) = (pickle.sizes(shape), pickle.node(data)) else {
            return Err("an array without shape or data".to_owned());
        };
        let name = pickle.call(dtype).and_then(|(_, args)| pickle.text(*args.first()?)).unwrap_or_default();
        let big_endian = match pickle.node(dtype) {
            Node::Object { state: Some(state), .. } => {
                pickle.items(*state).and_then(|items| pickle.text(*items.get(1)?)).is_some_and(|order| order == ">")
            }
            _ => false,
        };
        let kind = match &*name {
            "f2" => Kind::Half,
            "f4" => Kind::Single,
            "f8" => Kind::Double,
            _ => return Ok(None),
        };
        let mut strides = vec![1usize; shape.len()];
        let mut step = 1usize;
        let order: Vec<usize> = if fortran { (0..shape.len()).collect() } else { (0..shape.len()).rev().collect() };
        for axis in order {
            strides[axis] = step;
            step = step.checked_mul(shape[axis]).ok_or("a shape that overflows")?;
        }
        Ok(Some(Array { values: strided(&kind.decode(data, big_endian), 0, &shape, &strides)?, shape }))
    }
}

/// The elements of a view in row-major order.
fn strided(values: &[f32], offset: usize, shape: &[usize], stride: &[usize]) -> Result<Vec<f32>, String> {
    let outside = || format!("a view of {shape:?} with strides {stride:?} from {offset} leaves its storage of {} elements", values.len());
    if shape.len() != stride.len() {
        return Err(outside());
    }
    let count = shape.iter().try_fold(1usize, |count, &side| count.checked_mul(side)).ok_or_else(outside)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let last = shape.iter().zip(stride).try_fold(offset, |at, (&side, &step)| at.checked_add((side - 1).checked_mul(step)?));
    // A view may repeat elements (stride 0), but a checkpoint has no reason to: what it says is not more than what it holds.
    if last.is_none_or(|last| last >= values.len()) || count > values.len() {
        return Err(outside());
    }
    let mut contiguous = 1;
    let is_contiguous = shape.iter().zip(stride).rev().all(|(&side, &step)| {
        let fits = side == 1 || step == contiguous;
        contiguous *= side;
        fits
    });
    if is_contiguous {
        return Ok(values[offset..offset + count].to_vec());
    }
    let mut index = vec![0; shape.len()];
    let mut out = Vec::with_capacity(count);
    for _ in 0..count {
        out.push(values[offset + index.iter().zip(stride).map(|(i, step)| i * step).sum::<usize>()]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Ok(out)
}
