# The numbers are those of deploy/kubernetes/base: api.yaml and scaling.yaml.
resource "aws_appautoscaling_target" "broker" {
  for_each = local.scaled

  service_namespace  = "ecs"
  scalable_dimension = "ecs:service:DesiredCount"
  resource_id        = "service/${var.cluster_name}/${aws_ecs_service.scaled[each.key].name}"
  min_capacity       = each.value.min
  max_capacity       = each.value.max
}

resource "aws_appautoscaling_policy" "api" {
  name               = "sandbox-broker-api-processor-time"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = aws_appautoscaling_target.broker["api"].service_namespace
  scalable_dimension = aws_appautoscaling_target.broker["api"].scalable_dimension
  resource_id        = aws_appautoscaling_target.broker["api"].resource_id

  target_tracking_scaling_policy_configuration {
    target_value      = 60
    scale_in_cooldown = 300

    predefined_metric_specification {
      predefined_metric_type = "ECSServiceAverageCPUUtilization"
    }
  }
}

locals {
  # More than ten messages for each of the two workers asks for a third one. Five minutes below that send it away.
  queue_steps = var.queue_metric == null ? {} : {
    out = { tasks = local.scaled["worker-jobs"].max, operator = "GreaterThanThreshold", minutes = 1 }
    in  = { tasks = local.scaled["worker-jobs"].min, operator = "LessThanOrEqualToThreshold", minutes = 5 }
  }
}

resource "aws_appautoscaling_policy" "queue" {
  for_each = local.queue_steps

  name               = "sandbox-broker-worker-jobs-${each.key}"
  policy_type        = "StepScaling"
  service_namespace  = aws_appautoscaling_target.broker["worker-jobs"].service_namespace
  scalable_dimension = aws_appautoscaling_target.broker["worker-jobs"].scalable_dimension
  resource_id        = aws_appautoscaling_target.broker["worker-jobs"].resource_id

  step_scaling_policy_configuration {
    adjustment_type         = "ExactCapacity"
    metric_aggregation_type = "Maximum"
    cooldown                = 60

    step_adjustment {
      metric_interval_lower_bound = each.key == "out" ? "0" : null
      metric_interval_upper_bound = each.key == "in" ? "0" : null
      scaling_adjustment          = each.value.tasks
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "queue" {
  for_each = local.queue_steps

  alarm_name          = "sandbox-broker-worker-jobs-${each.key}"
  alarm_description   = "Scales the workers for jobs by the length of their queue. It is no fault."
  alarm_actions       = [aws_appautoscaling_policy.queue[each.key].arn]
  namespace           = var.queue_metric.namespace
  metric_name         = var.queue_metric.name
  dimensions          = var.queue_metric.dimensions
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = each.value.minutes
  threshold           = 10 * local.scaled["worker-jobs"].min
  comparison_operator = each.value.operator
  # If the length is unknown, the number of workers stays.
  treat_missing_data = "ignore"
}
