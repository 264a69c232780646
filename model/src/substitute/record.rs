//! What is written on a pod that is failed: the saved images, who holds it, and what stands in.
//!
//! Two annotations make one record. [`names::ORIGINAL_IMAGES`] is kept plain (images by container), so that a
//! human can put a pod right with nothing but kubectl. What only we need travels in the first entry of
//! [`names::HELD_BY`]: readers of holders skip it.
//!
//! It decides nothing: that is the room above.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use squall_api::names;
use squall_api::podchaos::FaultStyle;

use super::{FaultImages, Holder, Refusal};

/// The record on a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Record {
    /// The saved images by container; empty for a container without one.
    pub(crate) originals: BTreeMap<String, String>,
    /// Who holds the pod.
    pub(crate) holders: Vec<Holder>,
    /// What else has to be remembered.
    pub(crate) extra: Extra,
    /// Nothing says which images stand in, so every image of a saved container is taken for one.
    pub(crate) assume_ours: bool,
}

/// What only Squall needs to remember.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Extra {
    /// The images that were put in. After an upgrade, or with another registry, they are not those that the
    /// running version would put in, and must still be known for ours: else they'd be saved as originals.
    #[serde(skip_serializing_if = "StandIns::is_empty")]
    pub(crate) stand_ins: StandIns,
    /// Maps of the metadata that were there and empty before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) kept: Vec<KeptMap>,
    /// The version of the stored pod from which an image that someone wrote was taken over. An API server that
    /// asks a second time about the same request shows that version again: then the record is not forged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) taken_from: Option<String>,
}

/// A map of the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum KeptMap {
    /// `metadata.annotations`.
    Annotations,
    /// `metadata.labels`.
    Labels,
}

/// Images that stand in, by what they do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StandIns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pause: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    crash: Vec<String>,
}

impl StandIns {
    pub(crate) fn is_empty(&self) -> bool {
        self.pause.is_empty() && self.crash.is_empty()
    }

    /// Those of `images`.
    pub(crate) fn of(images: &FaultImages) -> Self {
        Self { pause: vec![images.pause.clone()], crash: vec![images.crash.clone()] }
    }

    fn list(&self, style: FaultStyle) -> &[String] {
        match style {
            FaultStyle::Pause => &self.pause,
            FaultStyle::Crash => &self.crash,
        }
    }

    /// `image` does what `style` asks for.
    pub(crate) fn fits(&self, image: &str, style: FaultStyle) -> bool {
        self.list(style).iter().any(|known| same_image(known, image))
    }

    /// `image` is one of them.
    pub(crate) fn contains(&self, image: &str) -> bool {
        self.fits(image, FaultStyle::Pause) || self.fits(image, FaultStyle::Crash)
    }

    pub(crate) fn add(&mut self, image: &str, style: FaultStyle) {
        let list = match style {
            FaultStyle::Pause => &mut self.pause,
            FaultStyle::Crash => &mut self.crash,
        };
        if !list.iter().any(|known| known == image) {
            list.push(image.to_owned());
            list.sort();
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (style, list) in [(FaultStyle::Pause, &other.pause), (FaultStyle::Crash, &other.crash)] {
            for image in list {
                self.add(image, style);
            }
        }
    }
}

/// Whether `a` and `b` are one image, maybe of two registries: a webhook that rewrites registries, or adds
/// digests, may have had its way with what we put in.
fn same_image(a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    let ((name_a, tag_a), (name_b, tag_b)) = (name_and_tag(a), name_and_tag(b));
    let pinned = |image: &str, tag: Option<&str>| tag.is_none() && image.contains('@');
    name_a == name_b && !name_a.is_empty() && (tag_a == tag_b || pinned(a, tag_a) || pinned(b, tag_b))
}

/// The last part of the repository, and the tag.
fn name_and_tag(image: &str) -> (&str, Option<&str>) {
    let plain = image.split_once('@').map_or(image, |(plain, _)| plain);
    let last = plain.rsplit_once('/').map_or(plain, |(_, last)| last);
    match last.split_once(':') {
        Some((name, tag)) => (name, Some(tag)),
        None => (last, None),
    }
}

/// An entry of [`names::HELD_BY`] as it is written.
#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    holder: Holder,
    #[serde(flatten)]
    extra: Extra,
}

impl Record {
    /// The record of a pod that had none: it remembers which maps were there.
    pub(crate) fn begin(pod: &Pod) -> Self {
        let mut record = Self::default();
        let empty = |map: &Option<BTreeMap<String, String>>| map.as_ref().is_some_and(BTreeMap::is_empty);
        if empty(&pod.metadata.annotations) {
            record.extra.kept.push(KeptMap::Annotations);
        }
        if empty(&pod.metadata.labels) {
            record.extra.kept.push(KeptMap::Labels);
        }
        record
    }

    /// The record on `pod`; `None` if there is none.
    pub(crate) fn read(pod: &Pod) -> Result<Option<Self>, Refusal> {
        let (originals, held_by) = (annotation(pod, names::ORIGINAL_IMAGES), annotation(pod, names::HELD_BY));
        if originals.is_none() && held_by.is_none() {
            return Ok(None);
        }
        let mut record = Self::default();
        if let Some(text) = originals {
            record.originals = parse(names::ORIGINAL_IMAGES, text)?;
        }
        if let Some(text) = held_by {
            record.set_entries(parse(names::HELD_BY, text)?);
        }
        record.assume_ours = record.extra.stand_ins.is_empty();
        Ok(Some(record))
    }

    /// As [`Record::read`], but what can't be read is as if it were not there.
    pub(crate) fn read_what_there_is(pod: &Pod) -> Option<Self> {
        let (originals, held_by) = (annotation(pod, names::ORIGINAL_IMAGES), annotation(pod, names::HELD_BY));
        if originals.is_none() && held_by.is_none() {
            return None;
        }
        let mut record = Self::default();
        if let Some(Ok(images)) = originals.map(|text| parse(names::ORIGINAL_IMAGES, text)) {
            record.originals = images;
        }
        if let Some(Ok(entries)) = held_by.map(|text| parse(names::HELD_BY, text)) {
            record.set_entries(entries);
        }
        record.assume_ours = record.extra.stand_ins.is_empty();
        Some(record)
    }

    fn set_entries(&mut self, entries: Vec<Entry>) {
        for Entry { holder, extra: Extra { stand_ins, kept, taken_from } } in entries {
            self.holders.push(holder);
            self.extra.stand_ins.merge(&stand_ins);
            for map in kept {
                if !self.extra.kept.contains(&map) {
                    self.extra.kept.push(map);
                }
            }
            self.extra.taken_from = self.extra.taken_from.take().or(taken_from);
        }
    }

    /// Write it on `pod`. A record without holders can't be written: the pod is to be cleaned then.
    pub(crate) fn write(&self, pod: &mut Pod) {
        let mut extra = self.extra.clone();
        let entries: Vec<Entry> = self
            .holders
            .iter()
            .map(|holder| Entry { holder: holder.clone(), extra: std::mem::take(&mut extra) })
            .collect();
        // Maps of strings and plain structs always serialise; were that ever untrue, nothing is written.
        if let (Ok(originals), Ok(held_by)) =
            (serde_json::to_string(&self.originals), serde_json::to_string(&entries))
        {
            let annotations = pod.metadata.annotations.get_or_insert_default();
            annotations.insert(names::ORIGINAL_IMAGES.to_owned(), originals);
            annotations.insert(names::HELD_BY.to_owned(), held_by);
        }
    }

    /// This record, with what `stored` knows of images that this one leaves out.
    pub(crate) fn on_top_of(mut self, stored: Self) -> Self {
        let Self { originals, holders: _, extra: Extra { stand_ins, kept, taken_from: _ }, assume_ours: _ } =
            stored;
        for (container, image) in originals {
            self.originals.entry(container).or_insert(image);
        }
        self.extra.stand_ins.merge(&stand_ins);
        for map in kept {
            if !self.extra.kept.contains(&map) {
                self.extra.kept.push(map);
            }
        }
        self.assume_ours = self.extra.stand_ins.is_empty();
        self
    }

    /// Add `holder`, or renew its entry in place.
    pub(crate) fn upsert(&mut self, holder: &Holder) {
        match self.holders.iter_mut().find(|held| held.uid == holder.uid) {
            Some(held) => *held = holder.clone(),
            None => self.holders.push(holder.clone()),
        }
    }
}

/// The annotation `key` of `pod`.
pub(crate) fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

fn parse<T: serde::de::DeserializeOwned>(annotation: &'static str, text: &str) -> Result<T, Refusal> {
    serde_json::from_str(text).map_err(|error| Refusal::BadRecord { annotation, error: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_image_of_two_registries_is_the_same() {
        for (a, b, same) in [
            ("r/squall-pause:1", "r/squall-pause:1", true),
            ("localhost:5000/squall-pause:1", "mirror.example/x/squall-pause:1", true),
            ("r/squall-pause:1", "r/squall-pause:1@sha256:aa", true),
            ("r/squall-pause:1", "r/squall-pause@sha256:aa", true),
            ("r/squall-pause:1", "r/squall-pause:2", false),
            ("r/squall-pause:1", "r/squall-crash:1", false),
            ("r/squall-pause:1", "", false),
            ("nginx", "nginx:1", false),
        ] {
            assert_eq!(same_image(a, b), same, "{a} {b}");
            assert_eq!(same_image(b, a), same, "{b} {a}");
        }
    }
}
