//! Which names of cgroups are a container's. Its whole ID counts, never a part of it, and of a component never a part.

/// Whether a cgroup of this name is the container `id`'s: `ID`, `PREFIX-ID`, or as a unit of systemd's `PREFIX-ID.scope`;
/// where a runtime takes the kubelet's unit for a directory, that is called `SLICE:PREFIX:ID`. CRI-O's monitor of a
/// container has a cgroup beside the container's, and that is not it.
pub fn is_of(name: &str, id: &str) -> bool {
    let unit = name.strip_suffix(".scope").unwrap_or(name);
    let prefix = unit.strip_suffix(id).filter(|prefix| prefix.is_empty() || prefix.ends_with(['-', ':']));
    !id.is_empty() && prefix.is_some_and(|prefix| !prefix.ends_with("conmon-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn runtimes_name_it_in_these_forms() {
        for name in [
            ID.to_owned(),
            format!("crio-{ID}"),
            format!("crio-{ID}.scope"),
            format!("docker-{ID}.scope"),
            format!("cri-containerd-{ID}.scope"),
            format!("kubepods-besteffort-pod1.slice:cri-containerd:{ID}"),
        ] {
            assert!(is_of(&name, ID), "{name}");
        }
    }

    #[test]
    fn a_part_is_nobodys() {
        for name in [
            format!("{ID}0"),
            format!("0{ID}"),
            format!("{ID}.slice"),
            format!("{ID}-x"),
            format!("crio-conmon-{ID}.scope"),
            "kubepods".to_owned(),
            String::new(),
        ] {
            assert!(!is_of(&name, ID), "{name}");
        }
        for part in ["", "b", "pods", &ID[1..], &ID[..63]] {
            for name in ["kubepods", "besteffort", ID, &format!("cri-containerd-{ID}.scope")] {
                assert!(!is_of(name, part), "{part} and {name}");
            }
        }
    }
}
