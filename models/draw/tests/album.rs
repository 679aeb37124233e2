//! Files and page of an album, and that nothing of somebody else is overwritten.
#![allow(clippy::unwrap_used)]

use omnilabel_detect::frame::Frame;
use omnilabel_draw::{Album, AlbumError, Card};
use omnilabel_keypoints::geometry::Size;
use std::path::Path;

fn frame() -> Frame {
    Frame { size: Size { width: 8, height: 6 }, rgb: vec![120; 3 * 8 * 6] }
}

fn card(file: &str) -> Card {
    Card { file: file.to_owned(), size: frame().size, title: file.to_owned(), lines: Vec::new() }
}

#[test]
fn pictures_keep_their_names_and_formats_and_the_page_links_them() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("drawn");
    let mut album = Album::open(&folder, "title", []).unwrap();
    let wanted = ["a b.jpg", "sub/c.PNG", "a b.jpg", "index.html", "../../up.png", "/abs/olute.jpeg"];
    let names: Vec<String> = wanted.iter().map(|name| album.name(Path::new(name))).collect();
    assert_eq!(names, ["a b.jpg", "sub/c.PNG", "a b-2.jpg", "index.html.png", "up.png", "olute.jpeg"]);
    for name in &names {
        album.save(name, &frame()).unwrap();
        album.push(card(name));
    }
    let page = std::fs::read_to_string(album.finish(&[], &["x.jpg: cut off".to_owned()]).unwrap()).unwrap();
    for name in &names {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        assert_eq!(Frame::decode(name, &bytes).unwrap().size, frame().size);
        assert_eq!(bytes.starts_with(&[0xff, 0xd8]), !name.to_lowercase().ends_with("png"), "{name}");
        assert!(page.contains(&format!("src=\"{}\"", name.replace(' ', "%20"))), "{name}");
    }
    assert!(page.matches("loading=\"lazy\"").count() == names.len() && page.contains("x.jpg: cut off"));
    assert!(std::fs::read_dir(&folder).unwrap().all(|e| !e.unwrap().path().to_string_lossy().ends_with(".part")));
}

#[test]
fn a_folder_of_something_else_is_refused_and_one_of_ours_is_drawn_into_again() {
    let dir = tempfile::tempdir().unwrap();
    let theirs = dir.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    std::fs::write(theirs.join("index.html"), "<p>mine</p>").unwrap();
    assert!(matches!(Album::open(&theirs, "t", []), Err(AlbumError::Taken(_))));
    assert_eq!(std::fs::read(theirs.join("index.html")).unwrap(), b"<p>mine</p>");

    let ours = dir.path().join("ours");
    // Opened and never finished: a run that was interrupted.
    drop(Album::open(&ours, "t", []).unwrap());
    let album = Album::open(&ours, "t", []).unwrap();
    album.save("a.png", &frame()).unwrap();
    album.finish(&[], &[]).unwrap();
    let input = ours.join("a.png");
    let error = Album::open(&ours, "t", [input.as_path()]).unwrap_err();
    assert!(matches!(error, AlbumError::Input { .. }) && error.to_string().contains("a.png"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_link_in_the_way_is_replaced_and_its_target_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (target, folder) = (dir.path().join("input.png"), dir.path().join("drawn"));
    std::fs::write(&target, "input").unwrap();
    let album = Album::open(&folder, "t", []).unwrap();
    std::os::unix::fs::symlink(&target, folder.join("input.png")).unwrap();
    album.save("input.png", &frame()).unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), b"input");
    assert!(Frame::open(&folder.join("input.png")).is_ok());
}
