//! The small objects that belong to no backup: keys and their copies, heads, lists of condemned objects.

use pgmahout_store::framed;
use pgmahout_types::repository::{CondemnedObjects, Head};
use tokio_util::sync::CancellationToken;

use super::damage::{Damages, ObjectDamage};
use super::error::VerifyError;
use super::objects::{ObjectName, damage_of};
use super::pack::fetch;
use crate::physical::stanza::{PhysicalRepository, StanzaError, StanzaObject, kind};

/// The largest of these objects that is read.
const LARGEST: u64 = 512 << 20;

/// Reads the keys, and with `all` every head and every list too.
pub(super) async fn check(
    repository: &PhysicalRepository,
    all: bool,
    damages: &mut Damages,
    cancellation: &CancellationToken,
) -> Result<(), VerifyError> {
    keys(repository, damages).await?;
    if !all {
        return Ok(());
    }
    let names = repository.names();
    for prefix in ["head", "condemned"] {
        for entry in repository
            .repository()
            .list(&names.full(prefix), cancellation)
            .await?
        {
            let object = names.relative(&entry.name).and_then(StanzaObject::parse);
            let (name, kind) = match object {
                Some(StanzaObject::Head(sequence)) => (ObjectName::Head(sequence), kind::HEAD),
                Some(StanzaObject::Condemned(id)) => (ObjectName::Condemned(id), kind::CONDEMNED),
                _ => continue,
            };
            let bytes = match repository.repository().get_bytes(&entry.name, LARGEST).await {
                Ok(bytes) => bytes,
                // Old ones are removed while we look.
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error.into()),
            };
            let content = match framed::open_bytes(&repository.cipher(), kind, &entry.name, &bytes) {
                Ok(content) => content,
                Err(source) => {
                    let damage = damage_of(StanzaError::Framed {
                        repository: repository.description(),
                        object: entry.name,
                        source,
                    })?;
                    damages.add(name, damage);
                    continue;
                }
            };
            let problem = match name {
                ObjectName::Head(sequence) => match Head::decode(&content) {
                    Ok(head) if head.seq == sequence => None,
                    Ok(head) => Some(ObjectDamage::whole(format!("it is head {}", head.seq))),
                    Err(error) => Some(ObjectDamage::because("it cannot be understood", &error)),
                },
                _ => CondemnedObjects::decode(&content)
                    .err()
                    .map(|error| ObjectDamage::because("it cannot be understood", &error)),
            };
            if let Some(damage) = problem {
                damages.add(name, damage);
            }
        }
    }
    Ok(())
}

/// Each key against its copy: one of the two is enough to open the repository, and the other is its spare.
async fn keys(repository: &PhysicalRepository, damages: &mut Damages) -> Result<(), VerifyError> {
    for number in repository.cipher().key_numbers() {
        let name = if number == 0 {
            "repository.key".to_owned()
        } else {
            format!("repository.key.{number}")
        };
        let key = fetch(repository, &name, LARGEST).await?;
        let copy = fetch(repository, &format!("{name}.copy"), LARGEST).await?;
        let problem = match (key, copy) {
            (Ok(key), Ok(copy)) if key == copy => continue,
            (Ok(_), Ok(_)) => "the key and its copy differ: one of them is damaged",
            (Ok(_), Err(_)) => "its copy is missing",
            (Err(_), Ok(_)) => "it is missing, and only its copy is there",
            (Err(_), Err(_)) => "it is missing, and so is its copy",
        };
        damages.add(ObjectName::Key(number), ObjectDamage::whole(problem.to_owned()));
    }
    Ok(())
}
