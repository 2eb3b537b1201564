//! `muster image`

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use muster_client::{Client, ClientError};
use muster_protocol::api::{IMAGE_PART, ImageView, PutImage};
use muster_protocol::names::ImageName;
use muster_protocol::problem::Kind;
use muster_protocol::text::printable;
use muster_protocol::vm::{IMAGE_HEAD, ImageFormat, Sha256, Size, looks_like, virtual_size};
use sha2::{Digest as _, Sha256 as Hash};

use crate::Context;
use crate::failure::Failure;
use crate::input;
use crate::ui::table::Table;
use crate::ui::time::ago;
use crate::ui::{Paint, Term, count};
use crate::verbs::listed::{ListArgs, listed};
use crate::verbs::now;

/// So often an upload goes on by itself after it broke off.
const TIMES: u32 = 5;
/// How long it waits before.
const PAUSE: Duration = Duration::from_secs(2);

/// Arguments of `muster image`.
#[derive(Args, Debug)]
pub struct ImageArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: ImageVerb,
}

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Make a disk image known that machines can be made of
    Add(AddArgs),
    /// List images, and where they are
    List(ListArgs),
    /// Remove an image; machines that were made of it keep their disks
    Remove(RemoveArgs),
}

const AFTER: &str = "\
A file is uploaded; what came of it is kept when that breaks off, and the same command goes on.
An image by URL is fetched by each hypervisor itself, and its SHA-256 decides there.

Examples:
  muster image add debian-12 debian-12-genericcloud-amd64.qcow2 --sha256 5e1f…
  muster image add debian-12 https://images.example.org/debian-12.qcow2 --sha256 5e1f… \\
      --size 354353664 --virtual-size 2GiB";

/// How an image is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Format {
    /// qcow2, without a backing file
    Qcow2,
    /// The disk's bytes as they are
    Raw,
}

impl From<Format> for ImageFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Qcow2 => Self::Qcow2,
            Format::Raw => Self::Raw,
        }
    }
}

/// Arguments of `muster image add`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct AddArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: ImageName,
    /// The file, or its URL
    #[arg(value_name = "FILE|URL")]
    pub from: String,
    /// The SHA-256 that its bytes must have; needed with a URL
    #[arg(long, value_name = "HASH")]
    pub sha256: Option<Sha256>,
    /// How it is written [default: as a file begins, or a URL ends]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Its bytes; needed with a URL
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: Option<Size>,
    /// How large a disk of it is; needed with the URL of a qcow2 image
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub virtual_size: Option<Size>,
    /// Take the place of the image of that name
    #[arg(long)]
    pub replace: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster image remove`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: ImageName,
}

/// Bytes as a number, or like `2GiB`.
fn size(text: &str) -> Result<Size, String> {
    match text.parse::<u64>() {
        Ok(bytes) => Ok(Size(bytes)),
        Err(_) => text.parse::<Size>().map_err(|e| e.to_string()),
    }
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: ImageArgs) -> Result<u8, Failure> {
    match args.verb {
        ImageVerb::Add(args) => add(context, args).await,
        ImageVerb::List(args) => list(context, &args).await,
        ImageVerb::Remove(args) => {
            let client = context.client()?;
            let mut all = client.images().await?.into_iter();
            let was = all.find(|image| image.name == args.name);
            client.remove_image(&args.name).await?;
            let used = was.map(|was| used(&was)).unwrap_or_default();
            let text = format!("image {} is removed{used}", args.name);
            context.term.line(&text)?;
            Ok(0)
        }
    }
}

/// Where its bytes stay all the same.
fn used(image: &ImageView) -> String {
    let machines = count(image.machines as usize, "machine");
    let on = count(image.on as usize, "hypervisor");
    match (image.machines, image.on) {
        (0, 0) => String::new(),
        (0, _) => format!("; {on} had it, and it goes there a while after nothing needs it"),
        (_, 0) => format!("; {machines} made of it stay as they are"),
        (_, _) => format!(
            "; {machines} made of it stay as they are, and so does it on {on} as long as it is needed"
        ),
    }
}

async fn add(context: &Context, args: AddArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let view = if is_url(&args.from) {
        let image = by_url(&args)?;
        client.put_image(&args.name, &image).await?.image
    } else {
        let file = Local::open(&args, &context.term)?;
        Some(file.upload(context, &client, &args.name).await?)
    };
    let Some(view) = view else {
        return Err(Failure::new(
            crate::failure::NOT_ALL,
            "the broker did not take the image, and does not say why",
        ));
    };
    if args.json {
        context.term.json(&view)?;
    } else {
        context.term.line(&format!(
            "image {}: {}, a disk of {}, sha256 {}",
            view.name, view.size, view.virtual_size, view.sha256
        ))?;
    }
    Ok(0)
}

fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// What hypervisors will fetch: nobody looks at its bytes before.
fn by_url(args: &AddArgs) -> Result<PutImage, Failure> {
    let ends = |end: &str| args.from.to_ascii_lowercase().ends_with(end);
    let format = match args.format {
        Some(format) => Some(format.into()),
        None if ends(".qcow2") => Some(ImageFormat::Qcow2),
        None if ends(".raw") => Some(ImageFormat::Raw),
        None => None,
    };
    // The disk of a raw image is its bytes.
    let virtual_size = match format {
        Some(ImageFormat::Raw) => args.virtual_size.or(args.size),
        _ => args.virtual_size,
    };
    if let (Some(sha256), Some(size), Some(virtual_size), Some(format)) =
        (args.sha256, args.size, virtual_size, format)
    {
        return Ok(PutImage {
            sha256,
            size,
            format,
            virtual_size,
            url: Some(args.from.clone()),
            replace: args.replace,
        });
    }
    let missing: Vec<&str> = [
        (args.sha256.is_none(), "--sha256"),
        (args.size.is_none(), "--size"),
        (virtual_size.is_none(), "--virtual-size"),
        (format.is_none(), "--format"),
    ]
    .into_iter()
    .filter_map(|(is, option)| is.then_some(option))
    .collect();
    Err(Failure::usage(format!(
        "an image by URL is not looked at here: {} must be given",
        missing.join(", ")
    ))
    .hint("whoever offers it says its SHA-256; `curl -I` shows its size, `qemu-img info` both and its format"))
}

/// An image on this machine, read once.
#[derive(Debug)]
struct Local {
    path: PathBuf,
    image: PutImage,
}

fn cannot(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!(
        "{}: {why}",
        printable(&path.display().to_string(), 200)
    ))
}

impl Local {
    fn open(args: &AddArgs, term: &Term) -> Result<Self, Failure> {
        let path = PathBuf::from(&args.from);
        let fail = |error: std::io::Error| cannot(&path, &error);
        let mut file = input::open(&path).map_err(fail)?;
        let bytes = Size(file.metadata().map_err(fail)?.len());
        let mut head = Vec::new();
        file.by_ref()
            .take(IMAGE_HEAD as u64)
            .read_to_end(&mut head)
            .map_err(fail)?;
        let format = args.format.map_or_else(|| looks_like(&head), Into::into);
        // Before gigabytes are read.
        let disk = virtual_size(format, &head, bytes).map_err(|fault| {
            let text = fault.to_string();
            let (what, hint) = text.split_once("; ").unwrap_or((&text, ""));
            let failure = cannot(&path, &what);
            if hint.is_empty() {
                failure
            } else {
                failure.hint(hint)
            }
        })?;
        for (said, is, what) in [
            (args.size, bytes, "bytes"),
            (args.virtual_size, disk, "bytes of disk"),
        ] {
            if said.is_some_and(|said| said != is) {
                return Err(cannot(
                    &path,
                    &format!("it has {} {what}, not what was said", is.bytes()),
                ));
            }
        }
        file.seek(SeekFrom::Start(0)).map_err(fail)?;
        let sha256 = hash(file, bytes, term).map_err(fail)?;
        if let Some(said) = args.sha256.filter(|said| *said != sha256) {
            return Err(cannot(&path, &"its SHA-256 is not the one that was given")
                .detail(format!("it is    {sha256}\nand not  {said}"))
                .hint("fetch the file again, from somebody whom you trust"));
        }
        Ok(Self {
            path,
            image: PutImage {
                sha256,
                size: bytes,
                format,
                virtual_size: disk,
                url: None,
                replace: args.replace,
            },
        })
    }

    /// Gives the broker what it lacks of it, and goes on when that breaks off.
    async fn upload(
        &self,
        context: &Context,
        client: &Client,
        name: &ImageName,
    ) -> Result<ImageView, Failure> {
        let progress = Progress::new(&context.term, "uploading", self.image.size);
        let mut times = 0;
        loop {
            match self.send(client, name, &progress).await {
                Ok(view) => return Ok(view),
                Err(Stopped::Here(failure)) => return Err(failure),
                Err(Stopped::There(error)) if times < TIMES && goes_on(&error) => {
                    times += 1;
                    progress.say(&format!("{error}; going on in a moment"));
                    tokio::time::sleep(PAUSE).await;
                }
                Err(Stopped::There(error)) => {
                    let failure = Failure::from(error);
                    return Err(match &failure.hint {
                        Some(_) => failure,
                        None => failure.hint("what has come is kept: the same command goes on"),
                    });
                }
            }
        }
    }

    async fn send(
        &self,
        client: &Client,
        name: &ImageName,
        progress: &Progress<'_>,
    ) -> Result<ImageView, Stopped> {
        let changed = |error: std::io::Error| {
            let why = format!("it has changed while it was read: {error}");
            Stopped::Here(cannot(&self.path, &why))
        };
        let offer = client.put_image(name, &self.image).await?;
        if let Some(view) = offer.image {
            return Ok(view);
        }
        let size = self.image.size.bytes();
        let length = |part: u32| {
            let begin = u64::from(part) * IMAGE_PART;
            size.saturating_sub(begin).min(IMAGE_PART)
        };
        let missing: u64 = offer.missing.iter().map(|part| length(*part)).sum();
        progress.at(size.saturating_sub(missing));
        let mut file = input::open(&self.path).map_err(changed)?;
        for part in offer.missing {
            let mut data = vec![0; usize::try_from(length(part)).unwrap_or(0)];
            file.seek(SeekFrom::Start(u64::from(part) * IMAGE_PART))
                .and_then(|_| file.read_exact(&mut data))
                .map_err(changed)?;
            client.put_image_part(name, part, data).await?;
            progress.add(length(part));
        }
        Ok(client.commit_image(name, self.image.size).await?)
    }
}

/// Why an upload stopped.
enum Stopped {
    Here(Failure),
    There(ClientError),
}

impl From<ClientError> for Stopped {
    fn from(error: ClientError) -> Self {
        Self::There(error)
    }
}

/// Whether trying again may help: the connection, or the broker that took
/// over and was told nothing yet.
fn goes_on(error: &ClientError) -> bool {
    match error {
        ClientError::Refused { .. }
        | ClientError::Connect { .. }
        | ClientError::Timeout { .. }
        | ClientError::Lost { .. }
        | ClientError::NotReady(_) => true,
        ClientError::Problem(problem) => {
            matches!(problem.kind, Kind::Unavailable | Kind::RateLimited)
                || (problem.kind == Kind::Conflict && problem.title.starts_with("no upload"))
        }
        _ => false,
    }
}

fn hash(mut file: File, size: Size, term: &Term) -> std::io::Result<Sha256> {
    let progress = Progress::new(term, "reading", size);
    let mut hash = Hash::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            read => {
                hash.update(&piece[..read]);
                progress.add(read as u64);
            }
        }
    }
    Ok(Sha256::from_bytes(hash.finalize().into()))
}

/// Bytes that are done, on standard error: a bar on a terminal, elsewhere a
/// line a tenth of what is more than a moment's.
struct Progress<'a> {
    term: &'a Term,
    what: &'static str,
    size: Size,
    bar: Option<ProgressBar>,
    done: std::cell::Cell<u64>,
}

impl<'a> Progress<'a> {
    fn new(term: &'a Term, what: &'static str, size: Size) -> Self {
        let bar = term.err_tty.then(|| {
            let style = ProgressStyle::with_template(
                "{prefix} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
            );
            let bar =
                ProgressBar::with_draw_target(Some(size.bytes()), ProgressDrawTarget::stderr())
                    .with_prefix(what);
            match style {
                Ok(style) => bar.with_style(style.progress_chars("=> ")),
                Err(_) => bar,
            }
        });
        Self {
            term,
            what,
            size,
            bar,
            done: std::cell::Cell::new(0),
        }
    }

    fn at(&self, done: u64) {
        self.done.set(done);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    fn add(&self, bytes: u64) {
        let (before, after) = (self.done.get(), self.done.get() + bytes);
        self.at(after);
        let tenth = |done: u64| u128::from(done) * 10 / u128::from(self.size.bytes().max(1));
        if self.bar.is_none() && self.size > Size(16 * IMAGE_PART) && tenth(before) < tenth(after) {
            self.say(&format!("{} {} of {}", self.what, Size(after), self.size));
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.term.note(text)),
            None => self.term.note(text),
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

async fn list(context: &Context, args: &ListArgs) -> Result<u8, Failure> {
    let all = context.client()?.images().await?;
    let none = "no images yet: `muster image add` brings one";
    let term = &context.term;
    listed(context, args, &all, none, |all| {
        table(all, now(), term.out, term.width)
    })?;
    Ok(0)
}

fn table(
    all: &[ImageView],
    now: muster_protocol::units::Timestamp,
    paint: Paint,
    width: usize,
) -> String {
    let heads = [
        "NAME", "SHA256", "FORMAT", "SIZE", "DISK", "ON", "MACHINES", "ADDED", "BY", "FROM",
    ];
    let mut table = Table::new(&heads);
    for view in all {
        let format = match view.format {
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Raw => "raw",
        };
        let sha256: String = view.sha256.to_string().chars().take(12).collect();
        table.row([
            view.name.to_string().into(),
            sha256.into(),
            format.into(),
            view.size.to_string().into(),
            view.virtual_size.to_string().into(),
            view.on.to_string().into(),
            view.machines.to_string().into(),
            ago(view.added, now).into(),
            view.by.to_string().into(),
            view.url.as_deref().unwrap_or("uploaded").into(),
        ]);
    }
    table.render(paint, width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn args(from: &Path, sha256: Option<Sha256>) -> AddArgs {
        AddArgs {
            name: "debian-12".parse().expect("a name"),
            from: from.display().to_string(),
            sha256,
            format: None,
            size: None,
            virtual_size: None,
            replace: false,
            json: false,
        }
    }

    #[test]
    fn a_file_is_read_and_held_against_its_hash() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk.raw");
        std::fs::write(&path, [7; 1024]).expect("writes");
        let term = Term::detect();
        let sha256 = Sha256::of(&[7; 1024]);
        for said in [None, Some(sha256)] {
            let local = Local::open(&args(&path, said), &term).expect("an image");
            assert_eq!(local.image.sha256, sha256);
            assert_eq!(local.image.format, ImageFormat::Raw);
            assert_eq!(local.image.virtual_size, Size(1024));
        }
        let other = Local::open(&args(&path, Some(Sha256::of(b"x"))), &term).expect_err("refused");
        assert!(
            other
                .message
                .ends_with("its SHA-256 is not the one that was given")
        );
        std::fs::write(&path, b"QFI\xfb").expect("writes");
        let cut = Local::open(&args(&path, None), &term).expect_err("refused");
        assert!(cut.message.contains("too short"), "{cut:?}");
        let none = Local::open(&args(&dir.path().join("none"), None), &term);
        assert_eq!(none.expect_err("refused").code, crate::failure::USAGE);
        let folder = Local::open(&args(dir.path(), None), &term);
        assert!(folder.expect_err("refused").message.contains("no file"));
    }

    #[test]
    fn what_is_missing_of_a_url_is_said() {
        let mut url = args(Path::new("https://images.example.org/debian-12.img"), None);
        let said = by_url(&url).expect_err("incomplete");
        insta::assert_snapshot!(said.message, @"an image by URL is not looked at here: --sha256, --size, --virtual-size, --format must be given");
        url.sha256 = Some(Sha256::of(b"x"));
        url.size = Some(Size(1024));
        url.format = Some(Format::Raw);
        let image = by_url(&url).expect("complete");
        assert_eq!(image.virtual_size, Size(1024), "the disk is the bytes");
        url.format = None;
        url.from.push_str(".qcow2");
        let said = by_url(&url).expect_err("incomplete");
        insta::assert_snapshot!(said.message, @"an image by URL is not looked at here: --virtual-size must be given");
        assert_eq!(size("354353664"), Ok(Size(354_353_664)));
        assert_eq!(size("2GiB"), Ok(Size(2 << 30)));
        assert!(size("2 GB").is_err());
    }

    #[test]
    fn images_are_a_table() {
        let view = |name: &str, url: Option<&str>| -> ImageView {
            serde_json::from_value(json!({
                "name": name, "sha256": Sha256::of(b"x"), "size": 354_353_664, "format": "qcow2",
                "virtual_size": 2_147_483_648_u64, "url": url, "on": 3, "machines": 12,
                "by": "ana", "added": "2026-11-22T10:00:00Z",
            }))
            .expect("an image")
        };
        let all = [
            view("debian-12", None),
            view(
                "debian-13",
                Some("https://images.example.org/debian-13.qcow2"),
            ),
        ];
        let now = "2026-11-22T12:00:00Z".parse().expect("a time");
        insta::assert_snapshot!(table(&all, now, Paint::plain(), 160), @"
        NAME       SHA256        FORMAT  SIZE      DISK  ON  MACHINES  ADDED    BY   FROM
        debian-12  2d711642b726  qcow2   337.9MiB  2GiB  3   12        2 h ago  ana  uploaded
        debian-13  2d711642b726  qcow2   337.9MiB  2GiB  3   12        2 h ago  ana  https://images.example.org/debian-13.qcow2
        ");
    }
}
