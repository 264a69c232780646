//! Who may.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use squall_api::names;
use squall_api::podchaos::{Action, Mode, PodChaos};
use squall_tests::{Ns, OptIn, client_as, experiment, from_json, kubectl, until, with_ns};

/// A ServiceAccount that may write experiments and, beside that, what `pods` says; and a client that acts as it.
async fn account(ns: &Ns, name: &str, pods: &[(&str, &str)]) -> Result<Client> {
    let user = format!("system:serviceaccount:{}:{name}", ns.name);
    let account: ServiceAccount = from_json(json!({ "metadata": { "name": name } }));
    ns.create(&account).await?;
    grant(ns, name, &ns.name, name, pods).await?;
    client_as(&user, &["system:serviceaccounts", "system:authenticated"]).await
}

/// Grants, in `ns`, to an account of `home`.
async fn grant(ns: &Ns, role: &str, home: &str, account: &str, pods: &[(&str, &str)]) -> Result<()> {
    let mut rules = vec![json!({
        "apiGroups": [names::GROUP], "resources": ["podchaos"],
        "verbs": ["get", "list", "create", "update", "patch", "delete"],
    })];
    rules.extend(
        pods.iter()
            .map(|(verb, resource)| json!({ "apiGroups": [""], "resources": [resource], "verbs": [verb] })),
    );
    let granted: Role = from_json(json!({ "metadata": { "name": role }, "rules": rules }));
    ns.create(&granted).await?;
    let binding: RoleBinding = from_json(json!({
        "metadata": { "name": role },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role },
        "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": home }],
    }));
    ns.create(&binding).await?;
    Ok(())
}

/// Creates it as `client`; the API server learns of a new right a moment after it was granted.
async fn create_as(client: &Client, ns: &Ns, chaos: &PodChaos) -> Result<Result<PodChaos, String>> {
    let api: Api<PodChaos> = Api::namespaced(client.clone(), &ns.name);
    until("the right to write experiments is known", async || {
        Ok(match api.create(&PostParams::default(), chaos).await {
            Ok(chaos) => Ok(Ok(chaos)),
            Err(kube::Error::Api(status))
                if status.message.contains("cannot create resource \"podchaos\"") =>
            {
                Err(status.message.clone())
            }
            Err(kube::Error::Api(status)) => Ok(Err(status.message.clone())),
            Err(error) => return Err(error.into()),
        })
    })
    .await
}

#[test]
fn nobody_does_by_an_experiment_what_he_may_not_do_himself() {
    with_ns("admit-access", OptIn::Yes, async |ns| {
        type Change = fn(&mut squall_api::podchaos::PodChaosSpec);
        type Right = (&'static str, &'static str);
        let cases: [(&str, Action, Change, Right, Right); 4] = [
            ("kill", Action::PodKill, |_| (), ("delete", "pods"), ("patch", "pods")),
            (
                "evict",
                Action::PodKill,
                |spec| spec.evict = Some(true),
                ("create", "pods/eviction"),
                ("delete", "pods"),
            ),
            (
                "fail",
                Action::PodFailure,
                |spec| spec.duration = Some("1s".into()),
                ("patch", "pods"),
                ("delete", "pods"),
            ),
            ("ckill", Action::ContainerKill, |_| (), ("patch", "pods"), ("create", "pods/eviction")),
        ];
        for (name, action, change, enough, not_enough) in cases {
            let chaos = experiment(name, action, Mode::One, |spec| {
                change(spec);
                spec.dry_run = Some(true);
            });
            let poor = account(ns, &format!("{name}-poor"), &[not_enough]).await?;
            let refused = create_as(&poor, ns, &chaos).await?;
            let why =
                refused.err().with_context(|| format!("{name} was accepted with {not_enough:?} only"))?;
            let may_not = format!("may not {} {} in namespace {}", enough.0, enough.1, ns.name);
            assert!(why.contains(&may_not), "{may_not:?} is not in {why}");
            assert!(ns.api::<PodChaos>().get_opt(name).await?.is_none());

            let rich = account(ns, &format!("{name}-rich"), &[enough]).await?;
            let accepted = create_as(&rich, ns, &chaos).await?;
            let accepted =
                accepted.map_err(|why| anyhow::anyhow!("{name} was refused with {enough:?}: {why}"))?;
            let by = accepted.metadata.annotations.unwrap_or_default().remove(names::REQUESTED_BY);
            let user = format!("system:serviceaccount:{}:{name}-rich", ns.name);
            assert!(by.as_ref().is_some_and(|by| by.contains(&user)), "{by:?}");
        }
        Ok(())
    });
}

#[test]
fn rights_are_asked_for_in_every_namespace_that_is_named() {
    with_ns("admit-access-far", OptIn::Yes, async |ns| {
        let far = ns.another("admit-access-far-b", OptIn::Yes).await?;
        let client = account(ns, "dev", &[("delete", "pods")]).await?;
        let chaos = experiment("kill", Action::PodKill, Mode::One, |spec| {
            spec.dry_run = Some(true);
            spec.selector.namespaces = vec![ns.name.clone(), far.name.clone()];
        });
        let why = create_as(&client, ns, &chaos).await?.err().context("it was accepted")?;
        assert!(why.contains(&far.name) && why.contains("may not delete pods"), "{why}");
        grant(&far, "dev", &ns.name, "dev", &[("delete", "pods")]).await?;
        until("the right is known", async || Ok(create_as(&client, ns, &chaos).await?.map(drop))).await
    });
}

#[test]
fn an_update_asks_for_rights_again() {
    with_ns("admit-access-update", OptIn::Yes, async |ns| {
        ns.create(&experiment("down", Action::PodFailure, Mode::All, |spec| {
            spec.duration = Some("1h".into())
        }))
        .await?;
        let poor = account(ns, "poor", &[("get", "pods")]).await?;
        let api: Api<PodChaos> = Api::namespaced(poor, &ns.name);
        let longer = json!({ "spec": { "duration": "2h" } });
        let why = until("the right to write experiments is known", async || {
            Ok(match api.patch("down", &PatchParams::default(), &Patch::Merge(&longer)).await {
                Ok(_) => Ok(None),
                Err(kube::Error::Api(status))
                    if status.message.contains("cannot patch resource \"podchaos\"") =>
                {
                    Err(status.message.clone())
                }
                Err(kube::Error::Api(status)) => Ok(Some(status.message.clone())),
                Err(error) => return Err(error.into()),
            })
        })
        .await?;
        let why = why.context("it was accepted")?;
        assert!(why.contains("may not patch pods"), "{why}");
        Ok(())
    });
}

#[test]
fn the_roles_that_kubernetes_ships_know_experiments() {
    with_ns("admit-roles", OptIn::Yes, async |ns| {
        for role in ["view", "edit", "admin"] {
            let user = format!("{}-{role}", ns.name);
            let binding: RoleBinding = from_json(json!({
                "metadata": { "name": role },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
                "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user }],
            }));
            ns.create(&binding).await?;
        }
        let may = |role: &str, verb: &str| -> Result<bool> {
            let user = format!("{}-{role}", ns.name);
            let said = kubectl(&["-n", &ns.name, "auth", "can-i", verb, "podchaos", "--as", &user])?;
            Ok(said.success)
        };
        until("the aggregated roles are known", async || {
            let found = [
                may("view", "list")?,
                !may("view", "create")?,
                may("edit", "list")?,
                !may("edit", "create")?,
                may("admin", "create")?,
                may("admin", "delete")?,
            ];
            Ok(if found.iter().all(|&fits| fits) { Ok(()) } else { Err(format!("{found:?}")) })
        })
        .await
    });
}
