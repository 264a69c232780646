//! `cargo xtask images`: the images, built without Docker, and loaded into a cluster or pushed to a registry.
//!
//! Each is FROM scratch and holds one static program. The same sources give the same bytes, so what a cluster has already
//! is not loaded again. Nothing is pulled.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    build,
    cluster::Cluster,
    image::{self, Config, Content, Files},
    progress::Step,
    sh,
};

/// The tag that the manifests name. In a registry the content follows: a node that has an image of that name does not
/// ask for it again.
const TAG: &str = "dev";
/// A number and not root: else a pod with `runAsNonRoot` and no user of its own could not be started at all.
const NOBODY: &str = "65532:65532";
/// containerd's socket, and other users' processes.
const ROOT: &str = "0:0";

/// Arguments of `cargo xtask images`.
#[derive(clap::Args)]
pub struct Args {
    /// Push to this registry (and path) instead of loading.
    #[arg(long, conflicts_with = "load")]
    pub push: Option<String>,
    /// Load into a cluster of this kind.
    #[arg(long, value_enum, default_value = "local")]
    pub load: Kind,
    /// Which kind or k3d cluster, by its name there; without it the one that their own tools would take.
    #[arg(long, conflicts_with = "push")]
    pub cluster: Option<String>,
}

/// Where images are loaded.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Kind {
    /// The local cluster of `cargo xtask cluster`.
    Local,
    /// A kind cluster.
    #[value(name = "kind")]
    KubernetesInDocker,
    /// A k3d cluster.
    K3d,
}

/// One of our images.
struct Recipe {
    name: &'static str,
    package: &'static str,
    program: &'static str,
    user: &'static str,
}

const RECIPES: [Recipe; 5] = [
    Recipe { name: "squall-webhook", package: "squall-webhook", program: "squall-webhook", user: NOBODY },
    Recipe {
        name: "squall-controller",
        package: "squall-controller",
        program: "squall-controller",
        user: NOBODY,
    },
    Recipe { name: "squall-daemon", package: "squall-daemon", program: "squall-daemon", user: ROOT },
    Recipe { name: "squall-pause", package: "squall-fault", program: "pause", user: NOBODY },
    Recipe { name: "squall-crash", package: "squall-fault", program: "crash", user: NOBODY },
];

/// An image as a docker archive.
struct Built {
    name: &'static str,
    archive: PathBuf,
    digest: String,
}

impl Built {
    /// As the manifests name it.
    fn reference(&self) -> String {
        reference(self.name)
    }

    fn hash(&self) -> String {
        hash(&self.digest)
    }
}

/// Builds all images, and loads or pushes them.
pub fn run(args: Args) -> Result<()> {
    deliver(args).map(drop)
}

/// Does so, and gives back what each one's content comes to, by its name.
pub fn deliver(args: Args) -> Result<BTreeMap<&'static str, String>> {
    let Args { push, load, cluster } = args;
    ensure!(
        cluster.is_none() || !matches!(load, Kind::Local),
        "--cluster is for --load kind or k3d; the local cluster is this checkout's"
    );
    // Before minutes of building.
    let push =
        push.as_deref().map(|registry| Ok::<_, anyhow::Error>((registry, Pusher::find()?))).transpose()?;
    if push.is_none() {
        check_target(load)?;
    }
    let images = build_all()?;
    match (push, load) {
        (Some((registry, pusher)), _) => push_all(&images, registry, &pusher)?,
        (None, Kind::Local) => load_local(&images)?,
        (None, Kind::KubernetesInDocker | Kind::K3d) => {
            for image in &images {
                let step = Step::begin(format!("loading {}", image.name));
                sh::output(&mut loading(load, cluster.as_deref(), &image.archive))?;
                step.done();
            }
        }
    }
    Ok(images.iter().map(|image| (image.name, image.hash())).collect())
}

/// What each image that was built last comes to, by its name; none, if one is missing.
pub fn built() -> Result<BTreeMap<&'static str, String>> {
    let directory = build::checkout()?.join("target/images");
    let one = |recipe: &Recipe| {
        let archive = fs::read(directory.join(format!("{}.tar", recipe.name))).ok()?;
        Some((recipe.name, hash(&image::hex_digest(&archive))))
    };
    Ok(RECIPES.iter().map(one).collect::<Option<_>>().unwrap_or_default())
}

fn hash(digest: &str) -> String {
    digest[..16].to_owned()
}

/// The name of an image in a registry, without its tag.
pub fn repository(registry: &str, name: &str) -> String {
    format!("{}/{name}", registry.trim_end_matches('/'))
}

/// The tag of an image with that content in a registry.
pub fn tag(hash: &str) -> String {
    format!("{TAG}-{hash}")
}

fn reference(name: &str) -> String {
    format!("localhost/{name}:{TAG}")
}

fn check_target(kind: Kind) -> Result<()> {
    let (tool, version) = match kind {
        Kind::Local => {
            let cluster = Cluster::of_this_checkout()?;
            ensure!(
                cluster.is_up(),
                "the cluster {} is not up; run `cargo xtask cluster up`",
                cluster.name()
            );
            return Ok(());
        }
        Kind::KubernetesInDocker => ("kind", "version"),
        Kind::K3d => ("k3d", "version"),
    };
    ensure!(
        sh::succeeds(&mut sh::command(tool, [version])),
        "loading into {tool} needs the program {tool}; there is none"
    );
    Ok(())
}

/// The packages whose programs go into images.
pub fn packages() -> Vec<&'static str> {
    let mut packages: Vec<_> = RECIPES.iter().map(|recipe| recipe.package).collect();
    packages.dedup();
    packages
}

/// Builds the programs and writes an archive of each image to `target/images`.
fn build_all() -> Result<Vec<Built>> {
    let programs = build::static_binaries(&packages(), &[])?;
    let directory = build::checkout()?.join("target/images");
    fs::create_dir_all(&directory).with_context(|| format!("can't make {}", directory.display()))?;
    let build_one = |recipe: &Recipe| {
        let Recipe { name, package, program, user } = recipe;
        let path =
            programs.get(*program).with_context(|| format!("{package} has no program called {program}"))?;
        let bytes = fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
        let files = Files::from([((*program).to_owned(), Content::File(bytes, 0o755))]);
        let config =
            Config { entrypoint: vec![format!("/{program}")], user: (*user).to_owned(), ..Config::default() };
        let bytes = image::archive(&reference(name), &files, &config)?;
        let archive = directory.join(format!("{name}.tar"));
        fs::write(&archive, &bytes).with_context(|| format!("can't write {}", archive.display()))?;
        Ok(Built { name, archive, digest: image::hex_digest(&bytes) })
    };
    RECIPES.iter().map(build_one).collect()
}

/// Into our own cluster; what it has already is left alone.
fn load_local(images: &[Built]) -> Result<()> {
    let cluster = Cluster::of_this_checkout()?;
    let present = cluster.image_names()?;
    let mut loaded = Vec::new();
    for image in images {
        let record = cluster.state_dir().join(format!("images/{}.sha256", image.name));
        let same = fs::read_to_string(&record).is_ok_and(|digest| digest == image.digest);
        if same && present.contains(&image.reference()) {
            continue;
        }
        cluster.load(&image.archive)?;
        fs::write(&record, &image.digest).with_context(|| format!("can't write {}", record.display()))?;
        loaded.push(image.name);
    }
    match loaded.as_slice() {
        [] => eprintln!("the cluster {} has all images already", cluster.name()),
        names => eprintln!("loaded into the cluster {}: {}", cluster.name(), names.join(", ")),
    }
    Ok(())
}

/// The command that loads an archive there.
fn loading(kind: Kind, cluster: Option<&str>, archive: &Path) -> Command {
    let (tool, words, flag) = match kind {
        Kind::Local => ("ctr", &["images", "import"][..], None),
        Kind::KubernetesInDocker => ("kind", &["load", "image-archive"][..], Some("--name")),
        Kind::K3d => ("k3d", &["image", "import"][..], Some("--cluster")),
    };
    let mut command = sh::command(tool, words);
    if let Some((flag, cluster)) = flag.zip(cluster) {
        command.args([flag, cluster]);
    }
    command.arg(archive);
    command
}

/// Programs that can push an archive.
#[derive(Clone, Copy)]
enum Tool {
    Skopeo,
    Crane,
    Docker,
}

/// One of them, and where it is.
struct Pusher {
    tool: Tool,
    program: PathBuf,
}

impl Pusher {
    /// Whichever is there; Docker comes last, as it needs a daemon.
    fn find() -> Result<Self> {
        [
            (Tool::Skopeo, "skopeo", "--version"),
            (Tool::Crane, "crane", "version"),
            (Tool::Docker, "docker", "info"),
        ]
        .into_iter()
        .find(|(_, program, word)| sh::succeeds(&mut sh::command(program, [word])))
        .map(|(tool, program, _)| Self { tool, program: program.into() })
        .context("pushing needs skopeo, crane, or docker with its daemon; there is none of them")
    }

    fn push(&self, archive: &Path, local: &str, target: &str) -> Result<()> {
        let run = |words: &[&str]| sh::output(&mut sh::command(&self.program, words)).map(drop);
        let archive = archive.display().to_string();
        match self.tool {
            Tool::Skopeo => {
                run(&["copy", &format!("docker-archive:{archive}"), &format!("docker://{target}")])
            }
            Tool::Crane => run(&["push", &archive, target]),
            Tool::Docker => {
                run(&["load", "-i", &archive])?;
                run(&["tag", local, target])?;
                run(&["push", target])
            }
        }
    }
}

fn push_all(images: &[Built], registry: &str, pusher: &Pusher) -> Result<()> {
    for image in images {
        let target = pushed(registry, image.name, &image.hash());
        let step = Step::begin(format!("pushing {target}"));
        pusher.push(&image.archive, &image.reference(), &target)?;
        step.done();
    }
    Ok(())
}

fn pushed(registry: &str, name: &str, hash: &str) -> String {
    format!("{}:{}", repository(registry, name), tag(hash))
}

#[cfg(test)]
mod tests {
    use std::{env, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn the_dockerfiles_say_the_same() {
        let directory = build::checkout().unwrap().join("deploy/images");
        for Recipe { name, package, program, user } in &RECIPES {
            let short = name.strip_prefix("squall-").unwrap();
            let text = fs::read_to_string(directory.join(format!("{short}.Dockerfile"))).unwrap();
            for line in
                [format!("USER {user}"), format!("ENTRYPOINT [\"/{program}\"]"), "FROM scratch".to_owned()]
            {
                assert!(text.lines().any(|l| l == line), "{short}.Dockerfile lacks the line {line}");
            }
            assert!(text.contains(&format!("-p {package}")), "{short}.Dockerfile does not build {package}");
            let protoc = text.contains("protobuf-compiler libprotobuf-dev");
            assert_eq!(
                protoc,
                short == "daemon",
                "{short}.Dockerfile: protoc is what the daemon's clients need"
            );
        }
    }

    #[test]
    fn every_image_of_the_manifests_is_built() {
        let directory = build::checkout().unwrap().join("deploy");
        let ours: Vec<_> = RECIPES.iter().map(|recipe| reference(recipe.name)).collect();
        for file in ["controller.yaml", "webhook.yaml", "daemon.yaml"] {
            let text = fs::read_to_string(directory.join(file)).unwrap();
            let named = text.lines().filter_map(|line| line.trim().strip_prefix("image: "));
            let named: Vec<_> = named.map(str::to_owned).collect();
            assert!(!named.is_empty() && named.iter().all(|image| ours.contains(image)), "{file}: {named:?}");
        }
    }

    #[test]
    fn a_registry_may_have_a_path_and_a_slash_at_its_end() {
        assert_eq!(
            pushed("registry.example/team/", "squall-pause", "00ff"),
            "registry.example/team/squall-pause:dev-00ff"
        );
    }

    /// What is pushed is what `deploy --registry` names, see there.
    #[test]
    fn each_tool_is_told_to_push_the_archive_to_the_tag_of_its_content() {
        let directory = env::temp_dir().join(format!("squall-push-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (program, log) = (directory.join("tool"), directory.join("log"));
        fs::write(&program, format!("#!/bin/sh\necho \"$*\" >> {}\n", log.display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let digest = "0123456789abcdef0123".to_owned();
        let image = Built { name: "squall-pause", archive: "a.tar".into(), digest };
        let images = std::slice::from_ref(&image);
        let pushed = |tool| {
            push_all(images, "registry.example/team/", &Pusher { tool, program: program.clone() }).unwrap();
            let lines = fs::read_to_string(&log).unwrap();
            fs::remove_file(&log).unwrap();
            lines
        };
        let target = "registry.example/team/squall-pause:dev-0123456789abcdef";
        assert_eq!(pushed(Tool::Skopeo), format!("copy docker-archive:a.tar docker://{target}\n"));
        assert_eq!(pushed(Tool::Crane), format!("push a.tar {target}\n"));
        assert_eq!(
            pushed(Tool::Docker),
            format!("load -i a.tar\ntag localhost/squall-pause:dev {target}\npush {target}\n")
        );
        let gone = Pusher { tool: Tool::Skopeo, program: directory.join("no-such-tool") };
        assert!(push_all(images, "registry.example", &gone).is_err());
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_kind_or_k3d_cluster_is_named_in_its_tools_words() {
        let shown = |kind, cluster| sh::show(&loading(kind, cluster, Path::new("a.tar")));
        assert_eq!(shown(Kind::KubernetesInDocker, None), "kind load image-archive a.tar");
        assert_eq!(shown(Kind::KubernetesInDocker, Some("x")), "kind load image-archive --name x a.tar");
        assert_eq!(shown(Kind::K3d, Some("x")), "k3d image import --cluster x a.tar");
    }
}
