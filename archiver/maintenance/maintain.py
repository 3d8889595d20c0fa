#!/usr/bin/env python3
"""What of the archive's maintenance is Spark's: it rewrites files, which the archiver's library cannot commit.

    maintain.py compact [--project P] [--days N]     small files of the last N days become large, sorted ones
    maintain.py retain [--project P]                 days beyond 'tidemill archive retention' are deleted
    maintain.py forget --project P --user U          one user's events are deleted (see 'tidemill archive forget')

Run it with `spark-submit --packages org.apache.iceberg:iceberg-spark-runtime-3.5_2.12:1.12.0,org.postgresql:postgresql:42.7.7`
(for S3 also org.apache.iceberg:iceberg-aws-bundle:1.12.0), or with a Python that has pyspark 3.5 and SPARK_JARS naming
a folder with those jars. It reads the settings that Tidemill's services read: DATABASE_URL, WAREHOUSE_URL, S3_ENDPOINT,
S3_REGION, S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY, TIDEMILL_WAREHOUSE__CATALOG and TIDEMILL_WAREHOUSE__CATALOG_URL.

Archivers go on meanwhile: they notice the commit, and add their files to what Spark has made. What was rewritten or
deleted stays in the table's past until `tidemill archive maintain` lets go of it. The last line on standard output is
JSON; where a project failed it names it under "failed", and the exit code is 1.
"""

import argparse
import json
import os
import pathlib
import sys
import traceback
from urllib.parse import unquote, urlsplit

CATALOG = "tidemill"
SORTED_BY = "event_type ASC NULLS FIRST, occurred_at ASC NULLS FIRST"
TARGET_BYTES = 128 * 1024 * 1024


def setting(name, default=None):
    """A setting from the environment, or from the file that NAME_FILE names."""
    if name in os.environ:
        return os.environ[name]
    if f"{name}_FILE" in os.environ:
        return pathlib.Path(os.environ[f"{name}_FILE"]).read_text().rstrip()
    return default


def catalog_settings():
    warehouse = setting("WAREHOUSE_URL", "file:///var/lib/tidemill/warehouse").rstrip("/")
    settings = {"": "org.apache.iceberg.spark.SparkCatalog"}
    if setting("TIDEMILL_WAREHOUSE__CATALOG", "sql") == "rest":
        settings["type"] = "rest"
        settings["uri"] = setting("TIDEMILL_WAREHOUSE__CATALOG_URL").rstrip("/")
        settings["warehouse"] = setting("TIDEMILL_WAREHOUSE__CATALOG_WAREHOUSE", warehouse)
        if token := setting("TIDEMILL_WAREHOUSE__CATALOG_TOKEN"):
            settings["token"] = token
    else:
        url = urlsplit(setting("DATABASE_URL", "postgres://postgres@127.0.0.1:15432/tidemill"))
        settings["type"] = "jdbc"
        settings["uri"] = f"jdbc:postgresql://{url.hostname}:{url.port or 5432}{url.path}"
        settings["jdbc.schema-version"] = "V1"
        settings["jdbc.user"] = unquote(url.username or "postgres")
        if url.password:
            settings["jdbc.password"] = unquote(url.password)
        settings["warehouse"] = warehouse
    if warehouse.startswith("s3"):
        settings["io-impl"] = "org.apache.iceberg.aws.s3.S3FileIO"
        settings["client.region"] = setting("S3_REGION") or setting("AWS_REGION", "us-east-1")
        for name, key in [
            ("S3_ENDPOINT", "s3.endpoint"),
            ("S3_ACCESS_KEY_ID", "s3.access-key-id"),
            ("S3_SECRET_ACCESS_KEY", "s3.secret-access-key"),
        ]:
            if value := setting(name):
                settings[key] = value
        settings["s3.path-style-access"] = str(bool(setting("S3_ENDPOINT"))).lower()
    return settings


def session():
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("tidemill-archive").config("spark.sql.session.timeZone", "UTC")
    extensions = "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions"
    builder = builder.config("spark.sql.extensions", extensions)
    for name, value in catalog_settings().items():
        builder = builder.config(f"spark.sql.catalog.{CATALOG}{'.' + name if name else ''}", value)
    if jars := os.environ.get("SPARK_JARS"):
        builder = builder.config("spark.jars", ",".join(str(jar) for jar in pathlib.Path(jars).glob("*.jar")))
        builder = builder.master(os.environ.get("SPARK_MASTER", "local[2]")).config("spark.ui.enabled", "false")
    return builder.getOrCreate()


def quoted(text):
    """A text as Spark SQL has it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def named(project):
    """A project's table as Spark SQL has it."""
    return f"{CATALOG}.tidemill.`{project}`.events"


def projects(spark):
    """All of them, those without a table too."""
    rows = spark.sql(f"SHOW NAMESPACES IN {CATALOG}.tidemill").collect()
    return [row[0].split(".")[-1].strip("`") for row in rows]


def compact(spark, arguments):
    """Files of days with five or more small ones become files of the target size. Then, manifests are grouped by day."""
    since = f"current_timestamp() - INTERVAL {int(arguments.days)} DAYS"
    since = spark.sql(f"SELECT date_format({since}, 'yyyy-MM-dd')").first()[0]

    def act(project):
        table = quoted(named(project))
        row = spark.sql(f"""
            CALL {CATALOG}.system.rewrite_data_files(
                table => {table}, strategy => 'sort', sort_order => {quoted(SORTED_BY)},
                where => {quoted(f"occurred_at >= TIMESTAMP '{since} 00:00:00'")},
                options => map('min-input-files', '{int(arguments.min_files)}', 'partial-progress.enabled', 'true',
                               'target-file-size-bytes', '{TARGET_BYTES}'))""").first()
        spark.sql(f"CALL {CATALOG}.system.rewrite_manifests(table => {table}, use_caching => false)")
        return {"rewritten": row["rewritten_data_files_count"], "added": row["added_data_files_count"]}

    return [arguments.project] if arguments.project else projects(spark), act


def retain(spark, arguments):
    """Whole days are deleted, which rewrites nothing."""
    limits = retention(spark)

    def act(project):
        before = spark.sql(f"SELECT date_sub(current_date(), {int(limits[project])})").first()[0]
        spark.sql(f"DELETE FROM {named(project)} WHERE occurred_at < TIMESTAMP '{before} 00:00:00'")
        return {"before": str(before)}

    chosen = [arguments.project] if arguments.project else projects(spark)
    return [project for project in chosen if project in limits], act


def retention(spark):
    """Days by project, where there is a limit."""
    url = urlsplit(setting("DATABASE_URL", "postgres://postgres@127.0.0.1:15432/tidemill"))
    reader = spark.read.format("jdbc").option("url", f"jdbc:postgresql://{url.hostname}:{url.port or 5432}{url.path}")
    reader = reader.option("driver", "org.postgresql.Driver").option("user", unquote(url.username or "postgres"))
    if url.password:
        reader = reader.option("password", unquote(url.password))
    query = "SELECT id, archive_days FROM projects WHERE archive_days IS NOT NULL AND deleted_at IS NULL"
    return {row["id"]: row["archive_days"] for row in reader.option("query", query).load().collect()}


def forget(spark, arguments):
    """Files with the user's events are written again without them."""
    where = f"user_id = {quoted(arguments.user)}"

    def act(project):
        rows = spark.table(named(project)).where(where).count()
        if rows:
            spark.sql(f"DELETE FROM {named(project)} WHERE {where}")
        return {"deleted": rows}

    return [arguments.project], act


def run(command, spark, arguments):
    """Does it for each project. One that fails does not keep the others from it."""
    names, act = arguments.act(spark, arguments)
    done, failed = [], []
    for project in names:
        try:
            if arguments.project or spark.catalog.tableExists(named(project)):
                done.append({"project": project, **act(project)})
        except Exception as error:
            traceback.print_exc()
            failed.append({"project": project, "error": str(error).partition("\n")[0]})
    print(json.dumps({"command": command, "tables": done, "failed": failed}))
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, act in [("compact", compact), ("retain", retain), ("forget", forget)]:
        command = commands.add_parser(name, help=act.__doc__)
        command.set_defaults(act=act)
        command.add_argument("--project", required=name == "forget")
        if name == "compact":
            command.add_argument("--days", type=int, default=7, help="of the events' own time [7]")
            command.add_argument("--min-files", type=int, default=5, help="of a day, to be worth it [5]")
        if name == "forget":
            command.add_argument("--user", required=True)
    arguments = parser.parse_args()
    spark = session()
    try:
        return run(arguments.command, spark, arguments)
    finally:
        spark.stop()


if __name__ == "__main__":
    sys.exit(main())
