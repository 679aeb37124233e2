//! `omnilabel-trainer dataset import`

use crate::formats::recognise::recognise;
use crate::formats::{Coordinates, Format, ImportOptions, import};
use anyhow::Context;
use omnilabel_console::say;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// File of annotations, or the folder with it
    #[arg(long)]
    from: PathBuf,
    /// New folder
    #[arg(long)]
    out: PathBuf,
    /// Whose files they are; by their contents without it
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// What the keypoints are to be, `coco17` or a JSON file with COCO's `categories`: matched by name, or by number where the files have
    /// no names; the files' own names without it
    #[arg(long)]
    skeleton: Option<String>,
    /// Category, class or label of people, where there are several
    #[arg(long)]
    category: Option<String>,
    /// Split of an Ultralytics folder: train, val, test, or all
    #[arg(long)]
    split: Option<String>,
    /// Where the pictures lie; beside the annotations without it
    #[arg(long)]
    pictures: Option<PathBuf>,
    /// What the keypoints' coordinates count from; what the format's own tool means without it
    #[arg(long, value_enum)]
    coordinates: Option<Coordinates>,
    /// For scripts
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let skeleton = args.skeleton.as_deref().map(omnilabel_coco::named_skeleton).transpose();
    let options = ImportOptions {
        skeleton: skeleton.context("--skeleton: expected `coco17` or COCO's `categories`")?,
        category: args.category.clone(),
        split: args.split.clone(),
        pictures: args.pictures.clone(),
        coordinates: args.coordinates,
    };
    let (format, file) = recognise(&args.from, args.format)?;
    let imported = import(format, &file, &options, &args.out)?;
    let dataset = &imported.dataset;
    let (images, people) = (dataset.images.len(), dataset.annotations.iter().filter(|a| a.iscrowd == 0).count());
    let crowds = dataset.annotations.len() - people;
    let keypoints: u64 = dataset.annotations.iter().map(|a| u64::from(a.num_keypoints)).sum();
    let names: Vec<&str> = dataset.skeleton.names().collect();
    if args.json {
        let report = serde_json::json!({
            "format": format.name(), "file": file, "out": args.out, "images": images, "people": people, "crowds": crowds,
            "labelled_keypoints": keypoints, "keypoints": names, "notes": imported.notes,
        });
        say!("{report}");
        return Ok(());
    }
    say!("{} ({}): {images} images, {people} people, {crowds} crowds, {keypoints} labelled keypoints", file.display(), format.name());
    say!("keypoints: {}", names.join(", "));
    imported.notes.iter().for_each(|note| say!("note: {note}"));
    say!("written: {}", args.out.display());
    Ok(())
}
