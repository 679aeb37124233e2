//! Labels as a Parquet file: one row a person, with where each comes from. Written a bounded number of rows at a time, however many there
//! are.
//!
//! Coordinates are those of `annotations.json`: boxes continuous, keypoints with the centre of the first pixel at 0.

use super::FormatError;
use parquet::basic::Compression;
use parquet::column::writer::ColumnWriterImpl;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows in memory, and of a row group: some megabytes with the largest skeletons.
const ROWS: usize = 16_384;

/// What every row has. A name is for ever; columns may be added.
const SCHEMA: &str = "
message labels {
  REQUIRED BYTE_ARRAY picture (STRING);
  OPTIONAL BYTE_ARRAY picture_sha256 (STRING);
  REQUIRED INT32 width (INTEGER(32,false));
  REQUIRED INT32 height (INTEGER(32,false));
  OPTIONAL BYTE_ARRAY device (STRING);
  OPTIONAL INT64 epoch (INTEGER(64,false));
  OPTIONAL INT64 sequence (INTEGER(64,false));
  OPTIONAL INT64 frame (INTEGER(64,false));
  OPTIONAL BYTE_ARRAY camera (STRING);
  OPTIONAL INT64 captured (TIMESTAMP(MILLIS,true));
  OPTIONAL INT64 received (TIMESTAMP(MILLIS,true));
  OPTIONAL INT64 model (INTEGER(64,false));
  OPTIONAL BYTE_ARRAY model_hash (STRING);
  OPTIONAL INT32 views (INTEGER(32,false));
  OPTIONAL BOOLEAN faces_blurred;
  OPTIONAL FLOAT tau;
  OPTIONAL FLOAT tau_k;
  OPTIONAL FLOAT score;
  OPTIONAL FLOAT agreement;
  REQUIRED BOOLEAN crowd;
  REQUIRED GROUP box {
    REQUIRED DOUBLE x;
    REQUIRED DOUBLE y;
    REQUIRED DOUBLE width;
    REQUIRED DOUBLE height;
  }
  REQUIRED GROUP keypoints (LIST) {
    REPEATED GROUP list {
      REQUIRED GROUP element {
        REQUIRED DOUBLE x;
        REQUIRED DOUBLE y;
        REQUIRED INT32 v (INTEGER(32,false));
        OPTIONAL FLOAT score;
        OPTIONAL FLOAT agreement;
      }
    }
  }
}";

/// Where a label of a camera comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    /// The device.
    pub device: String,
    /// Its outbox epoch.
    pub epoch: u64,
    /// The label's number in it.
    pub sequence: u64,
    /// The frame's id.
    pub frame: u64,
    /// Which camera of the device; empty where it has one.
    pub camera: String,
    /// By the device's clock, Unix ms; 0 without a clock.
    pub captured_ms: u64,
    /// By the centre's clock, Unix ms.
    pub received_ms: i64,
    /// Counter of the release whose model made it.
    pub model: u64,
    /// First 8 bytes of the SHA-256 of its manifest.
    pub model_hash: u64,
    /// Views that were averaged; 0 where it is not known.
    pub views: u16,
    /// Whether faces were blurred before the picture left the device.
    pub faces_blurred: bool,
    /// τ and τ_k that were applied; `None` of what a person accepted or corrected.
    pub thresholds: Option<(f32, f32)>,
}

/// One keypoint: `[x, y, v]`, and of a generated one its probability and the agreement of the views.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowKeypoint {
    /// COCO's x, y and v.
    pub place: [f64; 3],
    /// Probability and agreement.
    pub score: Option<(f32, f32)>,
}

/// One person.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Its picture's file name.
    pub picture: Arc<str>,
    /// SHA-256 of the picture in hex, where there is one.
    pub sha256: Option<Arc<str>>,
    /// Width and height of the picture, px.
    pub size: (u32, u32),
    /// `None` of a label that no camera sent.
    pub source: Option<Arc<Source>>,
    /// Score, and mean agreement of the views.
    pub score: Option<(f32, f32)>,
    /// A region with many people.
    pub crowd: bool,
    /// `[x, y, width, height]`
    pub bbox: [f64; 4],
    /// In the skeleton's order.
    pub keypoints: Vec<RowKeypoint>,
}

/// A Parquet file that is being written.
pub struct Table {
    writer: SerializedFileWriter<File>,
    path: PathBuf,
    rows: Vec<Row>,
    written: u64,
}

impl Table {
    /// Begins a file.
    ///
    /// # Errors
    /// What the system says.
    pub fn create(path: &Path) -> Result<Self, FormatError> {
        let file = File::create(path).map_err(FormatError::io(path))?;
        let failed = |error: ParquetError| FormatError::whole(path, error.to_string());
        let schema = Arc::new(parse_message_type(SCHEMA).map_err(failed)?);
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).map_err(failed)?;
        Ok(Self { writer, path: path.to_owned(), rows: Vec::new(), written: 0 })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// What the system says.
    pub fn add(&mut self, row: Row) -> Result<(), FormatError> {
        self.rows.push(row);
        if self.rows.len() < ROWS { Ok(()) } else { self.flush() }
    }

    /// Ends the file; how many rows it has.
    ///
    /// # Errors
    /// What the system says.
    pub fn finish(mut self) -> Result<u64, FormatError> {
        self.flush()?;
        let Self { writer, path, written, .. } = self;
        let file = writer.into_inner().map_err(|error| FormatError::whole(&path, error.to_string()))?;
        file.sync_all().map_err(FormatError::io(&path))?;
        Ok(written)
    }

    /// Writes what is in memory as a row group.
    fn flush(&mut self) -> Result<(), FormatError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        self.written += rows.len() as u64;
        let written = self.writer.next_row_group().and_then(|group| write_group(Columns { group, rows: &rows }));
        written.map_err(|error| FormatError::whole(&self.path, error.to_string()))
    }
}

fn write_group(mut columns: Columns<'_, '_>) -> Result<(), ParquetError> {
    let text = |text: &str| ByteArray::from(text.as_bytes().to_vec());
    let hex = |hash: u64| ByteArray::from(format!("{hash:016x}").into_bytes());
    // In the schema's order.
    columns.required::<ByteArrayType>(|row| text(&row.picture))?;
    columns.optional::<ByteArrayType>(|row| row.sha256.as_deref().map(text))?;
    columns.required::<Int32Type>(|row| row.size.0.cast_signed())?;
    columns.required::<Int32Type>(|row| row.size.1.cast_signed())?;
    columns.sourced::<ByteArrayType>(|source| Some(text(&source.device)))?;
    columns.sourced::<Int64Type>(|source| Some(source.epoch.cast_signed()))?;
    columns.sourced::<Int64Type>(|source| Some(source.sequence.cast_signed()))?;
    columns.sourced::<Int64Type>(|source| Some(source.frame.cast_signed()))?;
    columns.sourced::<ByteArrayType>(|source| (!source.camera.is_empty()).then(|| text(&source.camera)))?;
    columns.sourced::<Int64Type>(|source| (source.captured_ms > 0).then_some(source.captured_ms.cast_signed()))?;
    columns.sourced::<Int64Type>(|source| Some(source.received_ms))?;
    columns.sourced::<Int64Type>(|source| Some(source.model.cast_signed()))?;
    columns.sourced::<ByteArrayType>(|source| Some(hex(source.model_hash)))?;
    columns.sourced::<Int32Type>(|source| (source.views > 0).then_some(source.views.into()))?;
    columns.sourced::<BoolType>(|source| Some(source.faces_blurred))?;
    columns.sourced::<FloatType>(|source| source.thresholds.map(|(tau, _)| tau))?;
    columns.sourced::<FloatType>(|source| source.thresholds.map(|(_, tau_k)| tau_k))?;
    columns.optional::<FloatType>(|row| row.score.map(|score| score.0))?;
    columns.optional::<FloatType>(|row| row.score.map(|score| score.1))?;
    columns.required::<BoolType>(|row| row.crowd)?;
    for side in 0..4 {
        columns.required::<DoubleType>(|row| row.bbox[side])?;
    }
    columns.listed::<DoubleType>(false, |keypoint| Some(keypoint.place[0]))?;
    columns.listed::<DoubleType>(false, |keypoint| Some(keypoint.place[1]))?;
    columns.listed::<Int32Type>(false, |keypoint| Some(keypoint.place[2] as i32))?;
    columns.listed::<FloatType>(true, |keypoint| keypoint.score.map(|score| score.0))?;
    columns.listed::<FloatType>(true, |keypoint| keypoint.score.map(|score| score.1))?;
    columns.group.close().map(drop)
}

/// The columns of a row group, one after the other.
struct Columns<'w, 'r> {
    group: SerializedRowGroupWriter<'w, File>,
    rows: &'r [Row],
}

impl Columns<'_, '_> {
    fn column<T: DataType>(
        &mut self,
        write: impl FnOnce(&mut ColumnWriterImpl<'_, T>) -> Result<usize, ParquetError>,
    ) -> Result<(), ParquetError> {
        let column = self.group.next_column()?;
        let mut column = column.ok_or_else(|| ParquetError::General("the schema has fewer columns than rows have values".to_owned()))?;
        write(column.typed::<T>())?;
        column.close()
    }

    fn required<T: DataType>(&mut self, value: impl Fn(&Row) -> T::T) -> Result<(), ParquetError> {
        let values: Vec<T::T> = self.rows.iter().map(value).collect();
        self.column::<T>(|column| column.write_batch(&values, None, None))
    }

    fn optional<T: DataType>(&mut self, value: impl Fn(&Row) -> Option<T::T>) -> Result<(), ParquetError> {
        let found: Vec<Option<T::T>> = self.rows.iter().map(value).collect();
        let defined: Vec<i16> = found.iter().map(|value| i16::from(value.is_some())).collect();
        let values: Vec<T::T> = found.into_iter().flatten().collect();
        self.column::<T>(|column| column.write_batch(&values, Some(&defined), None))
    }

    fn sourced<T: DataType>(&mut self, value: impl Fn(&Source) -> Option<T::T>) -> Result<(), ParquetError> {
        self.optional::<T>(|row| row.source.as_deref().and_then(&value))
    }

    /// A column of the keypoints. Definition levels: 0 of an empty list, 1 of a keypoint, 2 of one whose optional value is there.
    /// Repetition levels: 0 of a row's first keypoint, 1 of the others.
    fn listed<T: DataType>(&mut self, optional: bool, value: impl Fn(&RowKeypoint) -> Option<T::T>) -> Result<(), ParquetError> {
        let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
        for row in self.rows {
            if row.keypoints.is_empty() {
                defined.push(0);
                repeated.push(0);
            }
            for (index, keypoint) in row.keypoints.iter().enumerate() {
                let found = value(keypoint);
                defined.push(1 + i16::from(optional && found.is_some()));
                repeated.push(i16::from(index > 0));
                values.extend(found);
            }
        }
        self.column::<T>(|column| column.write_batch(&values, Some(&defined), Some(&repeated)))
    }
}
