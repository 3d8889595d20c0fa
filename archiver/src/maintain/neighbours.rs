//! Which tables lie in each other's folders.

use std::collections::{BTreeSet, HashMap};

use iceberg::table::Table;
use iceberg::{Catalog, ErrorKind, NamespaceIdent, Result, TableIdent};

use super::location::{place, within};
use crate::table::Tables;

/// All tables of a catalog, and where they lie. Loaded once for all that are maintained.
pub struct Neighbours(Vec<Neighbour>);

struct Neighbour {
    identifier: TableIdent,
    /// None: the table cannot be read.
    place: Option<String>,
}

impl Neighbours {
    /// Looks at every table.
    pub async fn load(tables: &Tables) -> Result<Self> {
        let catalog = tables.catalog().await?;
        let mut all = Vec::new();
        for identifier in identifiers(catalog).await? {
            let loaded = catalog.load_table(&identifier).await;
            let place = loaded.ok().map(|table| place(table.metadata().location()));
            all.push(Neighbour { identifier, place });
        }
        Ok(Self(all))
    }

    /// Other tables that lie in this one's folder, or around it. One that cannot be read may need any file of its
    /// namespace: that is an error.
    pub async fn of(&self, catalog: &dyn Catalog, table: &Table) -> Result<Vec<Table>> {
        let (own, folder) = (table.identifier(), place(table.metadata().location()));
        let mut found = Vec::new();
        for Neighbour { identifier, place } in self.0.iter().filter(|other| other.identifier != *own) {
            let near = match place {
                Some(place) => within(place, &folder) || within(&folder, place),
                None => identifier.namespace() == own.namespace(),
            };
            if near {
                found.push(catalog.load_table(identifier).await?);
            }
        }
        Ok(found)
    }
}

async fn identifiers(catalog: &dyn Catalog) -> Result<BTreeSet<TableIdent>> {
    let mut namespaces = catalog.list_namespaces(None).await?;
    let (mut seen, mut tables) = (BTreeSet::new(), BTreeSet::new());
    while let Some(namespace) = namespaces.pop() {
        if seen.insert(namespace.to_string()) {
            namespaces.extend(below(catalog, &namespace).await?);
            tables.extend(catalog.list_tables(&namespace).await?);
        }
    }
    Ok(tables)
}

/// The SQL catalog names the first level of a namespace though nobody has made it, and lists nothing below it then.
async fn below(catalog: &dyn Catalog, namespace: &NamespaceIdent) -> Result<Vec<NamespaceIdent>> {
    match catalog.list_namespaces(Some(namespace)).await {
        Err(error) if error.kind() == ErrorKind::NamespaceNotFound => {
            catalog.create_namespace(namespace, HashMap::new()).await?;
            catalog.list_namespaces(Some(namespace)).await
        }
        listed => listed,
    }
}
