# The alarms of cloudformation/broker.yaml. Missing data means that nothing happened.
locals {
  of_table = { TableName = aws_dynamodb_table.broker.name }
  of_index = { TableName = aws_dynamodb_table.broker.name, GlobalSecondaryIndexName = "StatusIndex" }

  # An on-demand table is throttled by its quota, or by a single hot partition. An index that cannot follow throttles the
  # writes of the table, too. A growing broker meets this limit first.
  throttled = {
    TableWritesThrottled = {
      metric      = "WriteThrottleEvents"
      dimensions  = local.of_table
      description = "Writes to the table are throttled - tracks get 503 if it lasts"
    }
    TableReadsThrottled = {
      metric      = "ReadThrottleEvents"
      dimensions  = local.of_table
      description = "Reads of the table are throttled - tracks get 503 if it lasts"
    }
    IndexWritesThrottled = {
      metric      = "WriteThrottleEvents"
      dimensions  = local.of_index
      description = "The index cannot follow the table - more shards are needed"
    }
    IndexReadsThrottled = {
      metric      = "ReadThrottleEvents"
      dimensions  = local.of_index
      description = "Queries of the index are throttled - candidates cannot be read"
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "throttled" {
  for_each = local.throttled

  alarm_name          = "${var.table_name}-${each.key}"
  alarm_description   = each.value.description
  alarm_actions       = [var.alarm_topic_arn]
  ok_actions          = [var.alarm_topic_arn]
  namespace           = "AWS/DynamoDB"
  metric_name         = each.value.metric
  dimensions          = each.value.dimensions
  statistic           = "Sum"
  period              = 60
  evaluation_periods  = 5
  datapoints_to_alarm = 3
  threshold           = 0
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
}

resource "aws_cloudwatch_metric_alarm" "fails" {
  alarm_name          = "${var.table_name}-DynamoDbFails"
  alarm_description   = "DynamoDB answers calls of the broker with 500 - see the AWS Health Dashboard"
  alarm_actions       = [var.alarm_topic_arn]
  ok_actions          = [var.alarm_topic_arn]
  evaluation_periods  = 5
  datapoints_to_alarm = 3
  threshold           = 0
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"

  # AWS counts these errors only by operation, so this alarm adds up those of all operations that the policies of deploy/iam
  # allow. AWS does not count the calls that describe or make the table. An alarm can have ten metrics at most.
  metric_query {
    id          = "errors"
    expression  = "SUM(METRICS())"
    label       = "System errors"
    return_data = true
  }

  dynamic "metric_query" {
    for_each = {
      transactWriteItems = "TransactWriteItems"
      getItem            = "GetItem"
      query              = "Query"
      updateItem         = "UpdateItem"
      batchGetItem       = "BatchGetItem"
      deleteItem         = "DeleteItem"
      putItem            = "PutItem"
      scan               = "Scan"
    }

    content {
      id          = metric_query.key
      return_data = false

      metric {
        namespace   = "AWS/DynamoDB"
        metric_name = "SystemErrors"
        dimensions  = merge(local.of_table, { Operation = metric_query.value })
        stat        = "Sum"
        period      = 60
      }
    }
  }
}

# In milliseconds. An allocation is one such call. docs/performance.md assumes 5 to 15 ms.
resource "aws_cloudwatch_metric_alarm" "slow" {
  alarm_name          = "${var.table_name}-TransactionsSlow"
  alarm_description   = "Transactions are slow - allocations are slow, too"
  alarm_actions       = [var.alarm_topic_arn]
  ok_actions          = [var.alarm_topic_arn]
  namespace           = "AWS/DynamoDB"
  metric_name         = "SuccessfulRequestLatency"
  dimensions          = merge(local.of_table, { Operation = "TransactWriteItems" })
  extended_statistic  = "p99"
  period              = 300
  evaluation_periods  = 5
  datapoints_to_alarm = 3
  threshold           = 100
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
}

resource "aws_cloudwatch_metric_alarm" "near_quota" {
  alarm_name          = "${var.table_name}-WritesNearQuota"
  alarm_description   = "The table is near its quota of write units - ask AWS to raise it"
  alarm_actions       = [var.alarm_topic_arn]
  ok_actions          = [var.alarm_topic_arn]
  evaluation_periods  = 5
  datapoints_to_alarm = 3
  # 80 % of 40,000 a second, the default quota.
  threshold           = 1920000
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"

  # One lease of a sandbox writes more to the index than to the table.
  metric_query {
    id          = "units"
    expression  = "MAX(METRICS())"
    label       = "Write units a minute"
    return_data = true
  }

  dynamic "metric_query" {
    for_each = { table = local.of_table, index = local.of_index }

    content {
      id          = metric_query.key
      return_data = false

      metric {
        namespace   = "AWS/DynamoDB"
        metric_name = "ConsumedWriteCapacityUnits"
        dimensions  = metric_query.value
        stat        = "Sum"
        period      = 60
      }
    }
  }
}
