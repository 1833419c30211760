# The table of broker_common/adapters/dynamo_table.py, as cloudformation/broker.yaml has it.
resource "aws_dynamodb_table" "broker" {
  name         = var.table_name
  billing_mode = "PAY_PER_REQUEST"
  hash_key     = "PK"
  range_key    = "SK"

  attribute {
    name = "PK"
    type = "S"
  }
  attribute {
    name = "SK"
    type = "S"
  }
  attribute {
    name = "status_key"
    type = "S"
  }
  attribute {
    name = "status_order"
    type = "N"
  }

  global_secondary_index {
    name               = "StatusIndex"
    hash_key           = "status_key"
    range_key          = "status_order"
    projection_type    = "INCLUDE"
    non_key_attributes = ["name", "external_id", "sfdc_account_id", "version", "deletion_requested_at"]
  }

  ttl {
    attribute_name = "ttl"
    enabled        = true
  }

  deletion_protection_enabled = true

  point_in_time_recovery {
    enabled = true
  }

  lifecycle {
    prevent_destroy = true
  }
}
